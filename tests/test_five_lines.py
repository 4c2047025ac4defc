"""A new family of interpolants is five lines in a user's own script (shared design, section 2)."""

import math

import pytest
import torch

#: alpha, beta and gamma are lambdas that interp has never seen; the rest follows from them.
SCRIPT = """
path = interp.Interpolant(lambda t: (1 - t)**1.5, lambda t: torch.sin(math.pi * t / 2), lambda t: t * (1 - t))
loss = interp.losses.Regression(path, view="velocity")
train = lambda model, data: loss(model, data).backward()
sample = lambda model, n: interp.solve(path.ode(model), path.base.sample((n, 2), seed=0)).x
picture = lambda target, to: interp.plot.density(target, path, to=to)
"""


def test_it_is_five_lines():
    lines = SCRIPT.strip().splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 115


@pytest.fixture(scope="module")
def family():
    """The script, run as a user's file would be."""
    import interp

    names = {"interp": interp, "torch": torch, "math": math}
    exec(compile(SCRIPT, "my_family.py", "exec"), names)
    return names


@pytest.fixture(scope="module")
def target():
    from interp.exact import Mixture

    return Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.1, [0.3, 0.2]])


def test_points_and_targets(family, target):
    """I_t and dI/dt by the definition, to rounding."""
    path, t = family["path"], torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    x0, z = torch.randn(2, 3, 2, dtype=torch.float64)
    x1, c = target.sample(3, seed=0, dtype=torch.float64), t[:, None]
    point = (1 - c) ** 1.5 * x0 + torch.sin(math.pi * c / 2) * x1 + c * (1 - c) * z
    rate = -1.5 * (1 - c).sqrt() * x0 + math.pi / 2 * torch.cos(math.pi * c / 2) * x1
    rate = rate + (1 - 2 * c) * z
    torch.testing.assert_close(path.at(t, x0, x1, z), point, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(path.rate(t, x0, x1, z), rate, rtol=1e-14, atol=1e-14)
    assert path.boundary.starts_at_base
    assert path.boundary.ends_at_data
    assert path.monotone


def test_training_reaches_every_parameter(family, target):
    net = torch.nn.Linear(3, 2)

    def model(t, x):
        return net(torch.cat([x, t.to(x.dtype).expand(len(x))[:, None]], 1))

    family["train"](model, target.sample(64, seed=0))
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_the_exact_velocity_has_the_least_loss(family, target):
    """No other velocity has a smaller expected loss: moved by a tenth it is larger by 1/100.

    Both are means over the same 100000 draws; the difference of the two has a deviation of
    2 x 0.1 |v - dI/dt| = 0.5 a row, so that 0.01 is seen to 15 %.
    """
    path, loss = family["path"], family["loss"]
    exact, x1 = target.velocity(path), target.sample(100_000, seed=0, dtype=torch.float64)

    def at(shift):
        generator = torch.Generator().manual_seed(0)
        return float(loss(lambda t, x: exact(t, x) + shift, x1, generator=generator))

    least = at(0.0)
    assert at(0.1) - least == pytest.approx(0.01, abs=0.008)
    assert at(-0.1) - least == pytest.approx(0.01, abs=0.008)


def test_sampling_and_the_exact_reference(family, target):
    """From noise by the exact velocity, the samples are the target's: five standard errors."""
    x = family["sample"](target.velocity(family["path"]), 4000).double()
    mean = target.weights @ target.means
    assert ((x.mean(0) - mean).abs() <= 5 * x.std(0) / math.sqrt(4000)).all()
    # -E log rho is the entropy.
    surprise, entropy = -target.log_prob(x), target.entropy()
    allowed = 5 * math.hypot(float(surprise.std()) / math.sqrt(4000), entropy.error)
    assert abs(float(surprise.mean()) - entropy.value) <= allowed


def test_every_view_trains_and_converts(family, target):
    """The other views of the same exact law, by the path's own conversion: 1e-10 in the middle."""
    path, x = family["path"], target.sample(5, seed=1, dtype=torch.float64)
    v = target.velocity(path)(0.4, x)
    for view in ("score", "noise", "data", "base"):
        found = path.convert(v, "velocity", view, x, 0.4)
        torch.testing.assert_close(
            found, getattr(target, view)(path)(0.4, x), rtol=1e-10, atol=1e-10
        )


def test_a_picture(family, target, tmp_path):
    family["picture"](target, tmp_path / "family.png")
    assert (tmp_path / "family.png").read_bytes().startswith(b"\x89PNG")
