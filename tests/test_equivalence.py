"""compare says yes where a paper's own formula does, and no to what is merely close."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adapters
import interp
from adapters.protocol import Family
from interp import schedules, testing
from interp.equivalence import compare
from interp.errors import OptionError, OutOfRange, ScheduleError

T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)


def sigma_of_vp(u):
    """Sigma / beta of the VP SDE (Song et al., 2011.13456, eq. 33): sqrt(exp(9.95 u^2 + .1 u) - 1)."""
    return (torch.expm1(9.95 * u**2 + 0.1 * u)).sqrt()


# Each yes: two paths, and b's time and scale for a's t written out from the papers.
SAME = {
    # sigma/beta: (1 - t)/t = tan(pi (1 - s) / 2); scale sqrt(beta^2 + sigma^2) = 1 on the angle's side.
    "linear and trigonometric": (
        schedules.linear(),
        schedules.trigonometric(),
        lambda t: 1 - 2 / math.pi * torch.atan((1 - t) / t),
        lambda t: 1 / (t**2 + (1 - t) ** 2).sqrt(),
    ),
    # EDM's sigma falls as a power, VE's as an exponential; x is the same (Karras et al., table 1).
    "edm and variance exploding": (
        schedules.edm(0.01, 50.0, 7.0),
        schedules.variance_exploding(0.01, 50.0),
        lambda t: (
            1
            - torch.log((50 ** (1 / 7) + t * (0.01 ** (1 / 7) - 50 ** (1 / 7))) ** 7 / 0.01)
            / math.log(5000)
        ),
        lambda t: torch.ones_like(t),
    ),
    # A bridge is one at any speed, and in any units.
    "a bridge and itself warped and rescaled": (
        schedules.brownian_bridge(0.7),
        schedules.brownian_bridge(0.7).warp(lambda t: t * t).rescale(lambda t: 1 + t),
        lambda t: t.sqrt(),
        lambda t: 1 + t.sqrt(),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_yes_with_the_maps_of_the_papers(name):
    a, b, time, scale = SAME[name]
    report = compare(a, b)
    assert report.equivalent, report
    assert report.max_error < 1e-7
    # Matched to the square root of rounding where the curve is parametrised by an angle.
    torch.testing.assert_close(report.time_map(T), time(T), rtol=0, atol=1e-7)
    torch.testing.assert_close(report.scale_map(T), scale(T), rtol=1e-7, atol=0)


TWINS = {
    "another sigma_max": (
        schedules.edm(0.01, 50.0),
        schedules.variance_exploding(0.01, 50.1),
    ),
    "another bridge": (schedules.brownian_bridge(0.7), schedules.brownian_bridge(0.7001)),
    "a beta that is off by a part in 10^4": (
        schedules.linear(),
        interp.Interpolant(lambda t: 1 - t, lambda t: t + 1e-4),
    ),
    "the table and its limit": (
        schedules.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
        schedules.variance_preserving(),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_no_to_the_perturbed_twin(name):
    report = compare(*TWINS[name])
    assert not report.equivalent, report
    assert 1e-6 < report.max_error < 1e-2
    assert compare(*TWINS[name], tol=2 * report.max_error).equivalent


def test_vp_begins_short_of_noise():
    """VP(.1, 20): beta / sigma starts at 6.572e-3, an angle of that."""
    vp = schedules.variance_preserving()
    report = compare(schedules.linear(), vp)
    assert not report.equivalent
    assert report.max_error == pytest.approx(math.atan(1 / sigma_of_vp(torch.ones(())).item()))
    assert report.log_snr_gap == math.inf
    # The range that both have is matched: sigma/beta = (1 - t)/t.
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    u = 1 - report.time_map(t)
    torch.testing.assert_close(sigma_of_vp(u), (1 - t) / t, rtol=1e-9, atol=0)
    with pytest.raises(OutOfRange):
        report.time_map(1e-4)


def test_the_gap_of_samples_is_that_of_the_closed_form():
    """From N(0, smax^2) instead of data + noise: mean off by s m / sqrt(s^2 + smax^2)."""
    report = compare(schedules.linear(), schedules.edm(0.0, 80.0))
    mean = 0.5 * 0.5 / math.hypot(0.5, 80)
    std = 0.5 * (1 - 80 / math.hypot(0.5, 80))
    assert report.sampling_error == pytest.approx(math.hypot(mean, std), rel=1e-9)


def test_a_gaussian_base_is_another_thing():
    report = compare(schedules.linear(), schedules.brownian_bridge(1.0))
    assert not report.equivalent
    assert report.max_error == math.pi / 2
    with pytest.raises(ScheduleError, match="no map"):
        report.time_map(0.5)


def test_a_part_of_a_bridge_is_not_the_bridge():
    bridge = schedules.brownian_bridge(0.7)
    report = compare(bridge, bridge.warp(lambda t: 0.01 + 0.99 * t))
    assert not report.equivalent
    assert "begin or end elsewhere" in report.reason
    # At t = 0.01 alpha : beta : gamma is .99 : .01 : .7 sqrt(.0099), from 1 : 0 : 0.
    off = math.atan(math.hypot(0.01, 0.7 * math.sqrt(0.0099)) / 0.99)
    assert report.max_error == pytest.approx(off, rel=1e-9)


@pytest.mark.parametrize("path", [schedules.mirror(), schedules.encode_decode()], ids=repr)
def test_a_path_that_turns_back_is_one_with_itself(path):
    report = compare(path, path.rescale(lambda t: 1 + t))
    assert report.equivalent
    torch.testing.assert_close(report.time_map(T), T)
    torch.testing.assert_close(report.scale_map(T), 1 + T)


def test_gamma_alone_decides_between_bridges_and_only_with_alpha_for_a_gaussian_base():
    """Two-sided: alpha : beta : gamma; with a Gaussian base alpha x0 + gamma z is one normal."""

    def alpha(t):
        return 0.6 * (1 - t)

    def gamma(t):
        return 0.8 * (1 - t)

    split = interp.Interpolant(alpha, lambda t: t, gamma)
    assert compare(split, schedules.linear()).equivalent  # .6^2 + .8^2 = 1
    off = interp.Interpolant(alpha, lambda t: t, lambda t: 0.8 * (1 - t) * (1 + 1e-4 * t))
    assert compare(off, schedules.linear()).equivalent  # one range of log-SNR, at another speed
    pair = [interp.Interpolant(p.alpha, p.beta, p.gamma, gaussian_base=False) for p in (split, off)]
    assert not compare(*pair).equivalent
    assert compare(pair[0], pair[0]).equivalent


@pytest.mark.parametrize("gaussian_base", [True, False])
def test_learned_paths_are_compared_as_they_stand(gaussian_base):
    """A learned clock leaves the curve; clocks of alpha and of beta apart bend it."""
    base = schedules.trigonometric()
    base = interp.Interpolant(base.alpha, base.beta, None, gaussian_base)
    for separate in (False, True):
        path = schedules.learned(base, separate=separate)
        assert compare(path, base).equivalent
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for p in path.parameters():
                p += 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
        report = compare(path, base)
        assert report.time_map(0.5).item() != pytest.approx(0.5, abs=1e-3)
        # Without a gamma, alpha : beta is one curve whatever the clocks.
        assert report.equivalent


def test_direction_counts_and_reversed_pairs_match():
    a, b = schedules.linear(), schedules.trigonometric()
    assert not compare(a, a.reverse()).equivalent
    report = compare(a.reverse(), b.reverse())
    assert report.equivalent
    forward = compare(a, b)
    torch.testing.assert_close(report.time_map(T), 1 - forward.time_map(1 - T))
    torch.testing.assert_close(report.scale_map(T), forward.scale_map(1 - T))


@settings(deadline=None, max_examples=40)
@given(path=testing.schedules(), p=st.floats(0.4, 2.5), c=st.floats(-0.9, 3.0))
def test_a_path_is_one_with_itself_at_another_speed_and_scale(path, p, c):
    other = path.warp(lambda t: t**p).rescale(lambda t: 1 + c * t)
    report = compare(path, other)
    assert report.equivalent, report
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    # log-SNR is matched to rounding; where it hardly moves the time is known by that much less.
    lam, back = path.log_snr(t), other.log_snr(report.time_map(t))
    torch.testing.assert_close(back, lam, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(path=testing.schedules(), gap=st.floats(1e-4, 1e-2))
def test_a_path_is_not_one_with_what_begins_later(path, gap):
    """The same curve, its beginning cut off: an angle of what is cut."""
    later = path.warp(lambda t: gap + (1 - gap) * t)
    a, b = (torch.atan2(k.beta, k.sigma) for k in (path.coefficients(s) for s in (0.0, gap)))
    report = compare(path, later)
    assert report.max_error == pytest.approx(float(b - a), rel=1e-6, abs=1e-12)
    assert report.equivalent == (float(b - a) <= 1e-6)


# Families


def test_families_that_are_one_and_their_losses():
    report = compare(*(adapters.create(n, (2,)) for n in ("flow_matching", "rectified_flow")))
    assert report.equivalent
    assert report.loss_ratio == pytest.approx(1, abs=1e-9)
    assert report.flow_error < 1e-8


def test_flow_matching_is_a_diffusion_at_another_speed_with_another_weight():
    """The flows agree where both have the noise level; the losses do not.

    FM weighs |n - n*|^2 at log-SNR lam by w = 1 / t^2 . t (1 - t) / 2, VP (its u uniform) by
    1 / lam'(u).
    """
    a, b = (adapters.create(n, (2,)) for n in ("vp_sde", "flow_matching"))
    report = compare(a, b)
    assert not report.equivalent
    # dopri5 at 1e-10 on flows over 16 nats of log-SNR.
    assert report.flow_error < 1e-7
    assert report.step_error < 1e-12
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    s, u = report.time_map(t), 1 - t
    rate = (19.9 * u + 0.1) / -torch.expm1(-(9.95 * u**2 + 0.1 * u))  # lam' = B / sigma^2
    ratio = (1 / rate) / (s**-2 * s * (1 - s) / 2)
    from interp.equivalence.measures import by_log_snr

    found = by_log_snr(a.exact(), t) / by_log_snr(b.exact(), s)
    torch.testing.assert_close(found, ratio, rtol=1e-9, atol=0)
    assert report.loss_ratio > 2


def test_a_weight_makes_two_losses_one():
    """The likelihood weight is one loss whatever the path (Kingma et al., 2107.00630)."""
    a, b = (
        adapters.create(n, (2,), weight="likelihood", width=8) for n in ("vp_sde", "flow_matching")
    )
    assert compare(a, b).loss_ratio == pytest.approx(1, rel=1e-9)


class Nothing(Family):
    name = "nothing"

    def __init__(self, shape, beta=1.0, **common):
        super().__init__(shape, {"beta": beta}, **common)


class Said(Nothing):
    name = "said"
    no_path = "its latent has another shape than the data."


def test_what_is_no_interpolant_is_said_to_be_none():
    fm = adapters.create("flow_matching", (2,))
    report = compare(fm, Nothing((2,)))
    assert not report.equivalent
    assert "nothing is no interpolant" in str(report)
    assert report.relation == "none"
    assert "another shape" in compare(Said((2,)), fm).reason


def test_a_family_without_a_path_is_one_with_itself_alone():
    assert compare(Nothing((2,)), Nothing((2,), lr=0.1)).equivalent
    report = compare(Nothing((2,)), Nothing((2,), beta=1.01))
    assert not report.equivalent
    assert "other options: beta" in report.reason
    assert not compare(Nothing((2,)), Said((2,))).equivalent


def test_other_pairs_are_another_model_on_the_same_path():
    """For data N(m, s^2): independent v = m + (t s^2 - (1 - t))(x - t m) / S, S = (1 - t)^2 + t^2 s^2;
    OT v = m + (s - 1)(x - t m) / (1 - t + t s). At t = 1/2, s = 1/2 the slopes are -6/5 and -2/3."""
    a = adapters.create("flow_matching", (2,))
    b = adapters.create("flow_matching", (2,), coupling="optimal_transport")
    report = compare(a, b)
    assert not report.equivalent
    assert report.relation == "pairs"
    assert report.max_error < 1e-6  # the paths are one
    # The root mean square of x - t m over x ~ N(t m, S), S = 5/16, by 512 numbers: to 15 %, five errors.
    assert report.pairs_apart == pytest.approx((6 / 5 - 2 / 3) * math.sqrt(5 / 16), rel=0.15)
    # Other pairs in a two-sided path, too.
    assert compare(
        b, adapters.create("flow_matching", (2,), coupling="optimal_transport")
    ).equivalent
    unknown = adapters.create("flow_matching", (2,), coupling="unbalanced")
    assert math.isnan(compare(a, unknown).pairs_apart)  # no closed form


def test_rectified_flow_is_flow_matching_until_it_reflows():
    a, b = (adapters.create(n, (2,), width=8) for n in ("flow_matching", "rectified_flow"))
    assert "trains flow, reflow 1" in str(compare(a, b))
    b.phase += 1
    report = compare(a, b)
    assert not report.equivalent
    assert "reflow 1 of independent pairs" in report.reason


def test_a_map_to_the_end_is_a_map_between_any_two_times_at_the_end():
    """For data N(m, s^2): f(x, sigma) = m + sqrt((s^2 + e^2) / (s^2 + sigma^2)) (x - m) on EDM's path, and
    U(t, r, x) = (x_r - x) / (r - t) of the affine flow x_t = t m + sqrt(S_t) n on the straight one."""
    m, s, e = 0.4, 0.6, 0.002
    a, b = (adapters.create(n, (1,), width=8) for n in ("consistency", "meanflow"))
    report = compare(a, b)
    assert report.relation == "maps"
    assert not report.equivalent
    # Quantiles of a mixture by bisection to rounding, points near 1.
    assert report.maps_apart < 1e-12
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    r, twins = (
        torch.tensor(1 / (1 + end), dtype=torch.float64) for end in (e, e / 2)
    )  # where sigma / beta = e on the straight path

    def mean_velocity(t, r, x):
        S = [(1 - u) ** 2 + u**2 * s**2 for u in (t, r)]
        return (r * m + (S[1] / S[0]).sqrt() * (x - t * m) - x) / (r - t)

    for t in (0.2, 0.5, 0.8):
        sigma = a.path.noise_scale(t)
        f = m + ((s**2 + e**2) / (s**2 + sigma**2)).sqrt() * (x - m)
        there, scale = report.time_map(t), report.scale_map(t)
        found = scale * x + (r - there) * mean_velocity(there, r, scale * x)
        torch.testing.assert_close(found / report.scale_map(1.0), f, rtol=1e-9, atol=1e-9)
        # The twin: a run that ends at half the noise, which is what the angle of the report says.
        twin = scale * x + (twins - there) * mean_velocity(there, twins, scale * x)
        assert float((twin / report.scale_map(1.0) - f).abs().max()) > 1e-4
    whole = adapters.create("consistency", (1,), path="linear", width=8)
    assert compare(whole, b).relation == "maps"
    assert compare(whole, b).max_error < 1e-12  # the paths are one


def test_the_ways_to_learn_a_bridge_are_one_where_their_pairs_are():
    def bridge(**options):
        return adapters.create("schroedinger_bridge", (2,), width=8, **options)

    # Shi et al., 2303.16852, theorem 6: iterative fitting stops at the bridge that sf2m's plan is of.
    assert compare(bridge(), bridge(method="dsbm")).equivalent
    assert compare(bridge(), adapters.create("flow_matching", (2,), variant="sb_cfm")).equivalent
    # I2SB's clock is a change of time.
    pairs = bridge(base="pairs", sigma=0.7)
    assert compare(bridge(method="i2sb", base="pairs", sigma=0.7), pairs).equivalent
    # And no to other pairs, another base and another size.
    assert compare(bridge(sigma=0.7), pairs).relation == "pairs"
    assert compare(bridge(), bridge(base="samples")).relation == "pairs"
    assert not compare(bridge(), bridge(method="dsbm", sigma=1.01)).equivalent


def test_a_bound_is_no_regression_and_has_no_ratio():
    simple, bound = (
        adapters.create("ddpm", (2,), width=8, **options)
        for options in ({}, {"variance": "learned", "objective": "vlb"})
    )
    report = compare(simple, bound)
    assert report.equivalent
    assert math.isnan(report.loss_ratio)
    assert "that of ddpm is no regression" in str(report)


def test_latents_are_compared_where_they_are_of_one_autoencoder():
    def latents(prior, latent):
        vae = {"name": "vae", "latent": latent, "width": 8}
        return adapters.create("latent_diffusion", (2,), autoencoder=vae, prior=prior)

    flow = latents("flow_matching", 2)
    assert compare(flow, latents("rectified_flow", 2)).equivalent
    assert compare(flow, latents("vp_sde", 2)).relation == "overlap"
    assert compare(flow, latents("flow_matching", 1)).relation == "space"
    assert compare(flow, adapters.create("flow_matching", (2,))).relation == "space"
    assert "gan is no interpolant" in compare(latents("gan", 2), flow).reason


def test_what_one_reads_of_the_table():
    report = compare(*(adapters.create(n, (2,), width=8) for n in ("flow_matching", "vp_sde")))
    assert report.relation == "overlap"
    # Exact laws on either path: rounding, times the 16 nats of the range.
    assert report.apart.marginals < 1e-12
    assert report.apart.views < 1e-12
    # Heun in 32 even steps: what each family says of itself.
    assert 0 < min(report.sample_errors) <= max(report.sample_errors) < 0.02
    for line in ("networks return", "log densities apart", "views apart", "own samplers miss by"):
        assert line in str(report)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (schedules.linear(), 3, "neither a path nor a family"),
        (schedules.linear(), adapters.create("flow_matching", (2,)), "family.path"),
    ],
)
def test_what_cannot_be_compared(a, b, said):
    with pytest.raises(OptionError, match=said):
        compare(a, b)


def test_a_tolerance_is_an_angle():
    with pytest.raises(OptionError, match="radians"):
        compare(schedules.linear(), schedules.linear(), tol=0.0)


def test_the_command_line_compares(capsys, tmp_path):
    from interp.cli import main

    assert (
        main(
            ["compare", "edm:sigma_max=20", "variance_exploding", "--out", str(tmp_path / "c.png")]
        )
        == 0
    )
    assert "equivalent" in capsys.readouterr().out
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert main(["compare", "vp_sde", "edm"]) == 0
    assert "weights of the losses" in capsys.readouterr().out
    assert main(["compare", "ddpm", "vp_sde", "--out", str(tmp_path / "d.png")]) == 0
    assert (tmp_path / "d.png").stat().st_size > 5000
    assert main(["compare", "vae", "meanflow", "--out", str(tmp_path / "v.png")]) == 0
    assert "vae is no interpolant" in capsys.readouterr().out
    assert (tmp_path / "v.png").stat().st_size > 5000
    assert main(["compare", "vae", "gan", "--out", str(tmp_path / "n.png")]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    assert main(["compare", "meanflow", "linear"]) == 2
    assert "meanflow is a family and linear a schedule" in capsys.readouterr().err
    assert main(["compare", "vpsde", "edm"]) == 2
    assert "vp_sde" in capsys.readouterr().err
    assert main(["compare", "xyz", "edm"]) == 2
    assert capsys.readouterr().err.count("edm,") == 1  # a family and a schedule, named once


def test_the_command_line_compares_runs(capsys, tmp_path):
    from interp.cli import main

    family = adapters.create("flow_matching", (3,), width=8)
    interp.train(family, torch.randn(8, 3), 1, tmp_path / "run", progress=False)
    assert main(["compare", str(tmp_path / "run"), "rectified_flow"]) == 0
    assert "one model in other clothes" in capsys.readouterr().out
