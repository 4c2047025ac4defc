"""Laws of time: each against its quantile function, exactly, and not by drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import schedules, times
from interp.errors import OptionError, UnknownName

F64 = torch.float64
PATHS = (schedules.linear(), schedules.variance_preserving())
LAWS = [
    times.Uniform(),
    times.LogitNormal(),
    times.LogitNormal(mean=-0.8, std=1.6),
    *(times.LogNormal(path=path) for path in PATHS),
    times.LogNormal(path=PATHS[1], mean=0.4, std=2.0),
]
INTERVALS = [(0.0, 1.0), (0.1, 0.6)]


def gauss(low: float, high: float, n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Legendre nodes and weights on (low, high)."""
    x, w = np.polynomial.legendre.leggauss(n)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (x + 1)), torch.from_numpy(w * half)


EVERYWHERE = ("importance", "log_normal", "logit_normal", "stratified", "uniform")


def test_the_nodes_of_a_table_are_drawn_evenly() -> None:
    path = schedules.from_betas([0.1] * 10)
    t = times.resolve("nodes", path).draw(20_000, generator=torch.Generator().manual_seed(0))
    k = 10 * (1 - t) - 1
    assert float((k - k.round()).abs().max()) < 1e-12
    counts = torch.bincount(k.round().long(), minlength=10)
    # 2000 each with a standard deviation of 42, of which five.
    assert len(counts) == 10
    assert float((counts - 2000).abs().max()) < 212
    with pytest.raises(OptionError, match="no table"):
        times.resolve("nodes", PATHS[0])


def test_names_and_what_is_not_one() -> None:
    assert times.names() == (*EVERYWHERE[:3], "nodes", *EVERYWHERE[3:])
    path = PATHS[0]
    for name in EVERYWHERE:
        law = times.resolve(name, path)
        t = law.draw(5, generator=torch.Generator().manual_seed(0))
        weight = law.weight(t)
        assert t.shape == weight.shape == (5,)
        assert t.dtype == weight.dtype == F64
        assert ((t > 0) & (t < 1)).all()
    law = times.resolve({"name": "log_normal", "mean": -0.4, "std": 1.0}, path)
    assert law == times.LogNormal(path=path, mean=-0.4, std=1.0)
    assert times.resolve(law, path) is law
    assert times.resolve(None, path) == times.Uniform()
    with pytest.raises(UnknownName, match="logit_normal"):
        times.resolve("logitnormal", path)
    with pytest.raises(UnknownName, match="mean"):
        times.resolve({"name": "logit_normal", "meen": 1.0}, path)
    with pytest.raises(UnknownName, match="path"):
        times.resolve({"name": "log_normal", "path": "linear"}, path)
    for spec in (3, {"mean": 1.0}):
        with pytest.raises(OptionError, match="name"):
            times.resolve(spec, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: times.LogitNormal(std=0.0),
        lambda: times.LogitNormal(mean=math.nan),
        lambda: times.Uniform(interval=(0.6, 0.6)),
        lambda: times.Uniform().within(0.0, 1.5),
        lambda: times.Importance(bins=0),
        lambda: times.Importance(floor=0.0),
        lambda: times.Importance(keep=1.0),
        lambda: times.Importance().within(0.5, 0.2),
        lambda: times.LogNormal(path=interp.Interpolant(lambda t: 1 - t, lambda t: t, None, False)),
    ],
)
def test_what_makes_no_law_is_refused(make) -> None:
    with pytest.raises(OptionError):
        make()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{type(law).__name__}-{law}"[:40])
def test_quantile_cdf_and_density_are_one_law(law) -> None:
    """The quantile inverts the cdf, and the density is its slope: to 1e-7, a central difference."""
    u = torch.linspace(0.01, 0.99, 50, dtype=F64)
    t = law.quantile(u)
    assert (t.diff() > 0).all()
    if isinstance(law, times.LogNormal):  # cut by the path: outside its range there is no t
        low, high = law.cdf(torch.tensor([0.0, 1.0], dtype=F64)).tolist()
        keep = (u > low) & (u < high)
        u, t = u[keep], t[keep]
    torch.testing.assert_close(law.cdf(t), u, rtol=0, atol=1e-12)
    h = 1e-6 * t * (1 - t)
    slope = (law.cdf(t + h) - law.cdf(t - h)) / (2 * h)
    torch.testing.assert_close(law.density(t), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{type(law).__name__}-{law}"[:40])
def test_with_its_weight_every_law_estimates_the_mean_over_uniform_time(law, interval) -> None:
    """int f(Q(u)) w(Q(u)) du = int f dt / (high - low), over the same part of the interval.

    Gauss-Legendre in z = Phi^-1(u) of smooth integrands: rounding alone, 1e-9 of numbers of size 1.
    """
    law = law.within(*interval)
    first, last = law.levels
    z, w = gauss(-4.0, 4.0)
    u, du = torch.special.ndtr(z), w * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    t = law.quantile(first + (last - first) * u)
    ends = law.quantile(
        first + (last - first) * torch.special.ndtr(torch.tensor([-4.0, 4.0]).double())
    )
    nodes, dt = gauss(*ends.tolist())
    low, high = interval
    for f in (torch.ones_like, torch.sqrt, lambda t: torch.cos(5 * t)):
        estimate = (f(t) * law.weight(t) * du).sum()
        truth = (f(nodes) * dt).sum() / (high - low)
        assert abs((estimate - truth).item()) < 1e-9


def test_the_published_laws() -> None:
    """Medians and one-sigma points: logit(t), and log(sigma / beta) of EDM's training."""
    u = torch.special.ndtr(torch.tensor([-1.0, 0.0, 1.0], dtype=F64))
    logit = torch.logit(times.LogitNormal(mean=0.3, std=1.5).quantile(u))
    torch.testing.assert_close(logit, torch.tensor([-1.2, 0.3, 1.8], dtype=F64), rtol=0, atol=1e-12)
    for path in PATHS:
        log_sigma = path.noise_scale(times.LogNormal(path=path).quantile(u)).log()
        wanted = torch.tensor([0.0, -1.2, -2.4], dtype=F64)  # clean data at t = 1
        torch.testing.assert_close(log_sigma, wanted, rtol=0, atol=1e-12)


@given(rows=st.integers(1, 40), u=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=60)
def test_a_lattice_has_one_point_in_each_of_its_cells(rows, u) -> None:
    points = times.lattice(torch.tensor([u], dtype=F64), rows)
    shift = (u * rows) % 1.0
    inside = torch.remainder(points * rows - shift + 1e-9, rows)  # off a cell's edge, for rounding
    assert inside.long().sort().values.tolist() == list(range(rows))


def test_stratified_times_are_uniform_each_and_vary_less_together() -> None:
    """The estimator's variance is exact in the lattice's one u; of iid rows it is Var(f) / rows.

    The lattice's error of a smooth f that jumps by d from 1 to 0 is d / rows (v - 1/2), v uniform: its
    variance is d^2 / (12 rows^2) to leading order, a factor of rows below.
    """
    rows = 64
    u, du = gauss(0.0, 1.0 / rows, 8)
    lattices = torch.stack([times.lattice(v[None], rows) for v in u])
    for f, variance, jump in ((torch.square, 4 / 45, 1.0), (torch.exp, None, math.e - 1)):
        estimates = f(lattices).mean(1)
        mean = (estimates * du).sum() * rows
        nodes, dt = gauss(0.0, 1.0, 40)
        assert abs((mean - (f(nodes) * dt).sum()).item()) < 1e-13
        spread = ((estimates - mean) ** 2 * du).sum().item() * rows
        assert spread == pytest.approx(jump**2 / (12 * rows**2), rel=1e-3)
        if variance is not None:
            assert spread < variance / rows / 16


def test_all_of_it_comes_from_the_generator() -> None:
    state = torch.get_rng_state()
    for name in EVERYWHERE:
        law = times.resolve(name, PATHS[1])
        draws = [law.draw(9, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
    assert torch.equal(state, torch.get_rng_state())


def test_a_uniform_number_is_never_zero(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.zeros(n, dtype=F64))
    for name in ("uniform", "stratified", "logit_normal"):
        t = times.resolve(name, PATHS[0]).draw(4)
        assert (t > 0).all()


# Importance


def taught(sampler: times.Importance, f) -> times.Importance:
    low, high = sampler.interval
    t = low + (high - low) * (torch.arange(sampler.bins, dtype=F64) + 0.5) / sampler.bins
    sampler.update(t, f(t))
    return sampler


def test_importance_is_uniform_until_every_bin_was_seen() -> None:
    sampler = times.Importance(bins=4)
    sampler.update(torch.tensor([0.1, 0.3, 0.6]), torch.tensor([9.0, 1.0, 1.0]))
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.update(torch.tensor([0.9]), torch.tensor([1.0]))
    p = sampler.probabilities()
    expected = 0.9 * torch.tensor([9.0, 1.0, 1.0, 1.0], dtype=F64) / 12 + 0.1 / 4
    torch.testing.assert_close(p, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("interval", INTERVALS)
def test_importance_is_unbiased_and_varies_less(interval) -> None:
    """Exactly, by quadrature inside each bin's share of u; f steep, as losses near data are."""
    low, high = interval
    f = lambda t: 1 / (0.02 + (t - low) / (high - low))  # noqa: E731
    sampler = taught(times.Importance(bins=16, floor=0.1).within(*interval), f)
    edges = torch.cat([torch.zeros(1, dtype=F64), sampler.probabilities().cumsum(0)])
    mean = square = 0.0
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        u, du = gauss(a, b, 60)
        t = sampler.quantile(u)
        weight = sampler.weight(t)
        mean += (f(t) * weight * du).sum().item()
        square += ((f(t) * weight) ** 2 * du).sum().item()
    exact = math.log(51)  # int_0^1 dv / (0.02 + v)
    uniform = 1 / 0.02 - 1 / 1.02  # int f^2
    assert mean == pytest.approx(exact, rel=1e-9)  # Gauss-Legendre of 60 nodes a bin
    assert square - exact**2 < (uniform - exact**2) / 5


def test_importance_forgets_at_the_rate_it_was_told() -> None:
    sampler = times.Importance(bins=2, keep=0.75)
    t = torch.tensor([0.2, 0.4, 0.9])
    sampler.update(t, torch.tensor([1.0, 3.0, 2.0]))
    assert sampler.squares.tolist() == [5.0, 4.0]
    sampler.update(t[:1], torch.tensor([1.0]))
    assert sampler.squares.tolist() == [0.75 * 5 + 0.25, 4.0]
    again = times.Importance(bins=2)
    again.load_state_dict(sampler.state_dict())
    assert torch.equal(again.probabilities(), sampler.probabilities())


@pytest.mark.parametrize("cast", ["half", "float", "double"])
def test_importance_survives_the_casts_of_a_module_around_it(cast) -> None:
    sampler = getattr(times.Importance(bins=4), cast)()
    taught(sampler, lambda t: 1 + t)
    t = sampler.draw(50, generator=torch.Generator().manual_seed(0))
    assert t.dtype == sampler.weight(t).dtype == F64
    torch.testing.assert_close(sampler.probabilities().sum().item(), 1.0)


def test_importance_where_the_loss_is_zero_stays_uniform() -> None:
    assert (
        taught(times.Importance(bins=8), torch.zeros_like).probabilities().tolist() == [1 / 8] * 8
    )
