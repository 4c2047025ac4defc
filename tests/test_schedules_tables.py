"""Tables: exact at their nodes, smooth and monotone between, clean at the end."""

import itertools
import json
import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interp import schedules
from interp.errors import OptionError, UnknownName

F64 = torch.float64


def at(t):
    return torch.tensor(t, dtype=F64)


def nodes(n):
    """T of index 0, 1, ..., n - 1."""
    return at([1 - (k + 1) / n for k in range(n)])


NAMED = ("linear", "scaled_linear", "cosine")
PATHS = {
    **{name: schedules.from_betas(name, 1000) for name in NAMED},
    "zero terminal": schedules.from_betas("scaled_linear", 1000, zero_terminal_snr=True),
    "short": schedules.from_betas([0.1, 0.5, 0.02, 0.9]),
    "one": schedules.from_betas([0.3]),
    "two, zero terminal": schedules.from_alphas_cumprod([0.8, 0.0]),
    "sigmas": schedules.from_sigmas(torch.logspace(-2, 1.7, 50, dtype=F64)),
    "three sigmas": schedules.from_sigmas([0.1, 0.2, 5.0]),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("n", [40, 1000])
def test_nodes_are_the_products_of_the_table(name, n):
    """To 1e-13 of beta^2 and sigma^2: log1p is exact to rounding, a sum of n adds n of them."""
    betas = schedules.named_betas(name, n)
    path = schedules.from_betas(betas)
    k = path.coefficients(nodes(n))
    with mp.workdps(40):
        abar = mp.mpf(1)
        for i, b in enumerate(betas.tolist()):
            abar *= 1 - mp.mpf(b)
            assert abs(k.beta[i].item() ** 2 / abar - 1) < 1e-13
            assert abs(k.sigma[i].item() ** 2 / (1 - abar) - 1) < 1e-13
    assert torch.equal(k.beta, schedules.from_betas(name, n).coefficients(nodes(n)).beta)


def test_published_ends():
    """Ho et al.'s abar_999 = 4.0358e-5; Nichol and Dhariwal's last abar 2.43e-9 (clipped)."""
    for name, abar, digits in (("linear", 4.0358e-5, 5e-10), ("cosine", 2.43e-9, 5e-12)):
        assert PATHS[name].boundary.beta0 ** 2 == pytest.approx(abar, abs=digits)
    stable = PATHS["scaled_linear"]
    assert stable.boundary.beta0**2 == pytest.approx(0.00466, abs=5e-6)
    assert stable.noise_scale(0.999).item() == pytest.approx(0.0292, abs=5e-5)
    assert stable.noise_scale(0.0).item() == pytest.approx(14.61, abs=5e-3)


def test_the_linear_table_is_vp_to_the_published_tolerance():
    """On the same t, |abar - VP(.1, 20)| up to 8.1e-4 and |log abar - log VP| up to .068."""
    ours, vp = (
        path.beta(nodes(1000)) for path in (PATHS["linear"], schedules.variance_preserving())
    )
    assert (ours**2 - vp**2).abs().max().item() == pytest.approx(8.1e-4, abs=5e-6)
    assert 2 * (ours / vp).log().abs().max().item() == pytest.approx(0.068, abs=5e-4)


@pytest.mark.parametrize("name", PATHS)
def test_the_last_cell_is_a_straight_line_to_clean_data(name):
    path = PATHS[name]
    end = 1 - 1 / path.table
    first = path.noise_scale(end).item()
    for f in (0.999, 0.5, 1e-3, 1e-9):
        t = 1 - f * (1 - end)
        # To 1e-12 of its size, and the rounding of t.
        wanted = first * (1 - t) / (1 - end)
        assert path.noise_scale(t).item() == pytest.approx(wanted, rel=1e-12)
    assert path.boundary.ends_at_data
    assert path.boundary.finite_rate1
    slope = path.alpha.derivative(at(1.0)).item()
    assert slope == pytest.approx(-first * path.table, rel=1e-12)


@pytest.mark.parametrize("name", ["zero terminal", "two, zero terminal"])
def test_zero_terminal_snr_starts_with_nothing_of_the_data(name):
    path = PATHS[name]
    assert path.boundary.starts_at_base
    assert path.boundary.alpha0 == 1
    first = 1 / path.table
    rise = 1 / path.noise_scale(first).item()
    assert 1 / path.noise_scale(0.3 * first).item() == pytest.approx(0.3 * rise, rel=1e-12)
    assert path.beta.derivative(at(0.0)).item() == pytest.approx(rise / first, rel=1e-12)


def test_zero_terminal_snr_is_the_published_rescaling():
    """Lin et al., algorithm 1: r = sqrt(abar) shifted to 0 at its end and kept at its start."""
    r = torch.cumprod(1 - schedules.named_betas("scaled_linear", 1000), 0).sqrt()
    wanted = (r - r[-1]) * r[0] / (r[0] - r[-1])
    # To 1e-12: their difference of roots loses 1e-16 of numbers that are down to 1e-4.
    torch.testing.assert_close(
        PATHS["zero terminal"].beta(nodes(1000)), wanted, rtol=1e-12, atol=1e-15
    )
    same = schedules.from_alphas_cumprod(r**2, zero_terminal_snr=True)
    torch.testing.assert_close(same.beta(nodes(1000)), wanted, rtol=1e-12, atol=1e-15)


def test_second_derivatives_on_the_end_cells():
    """With tau = c u and beta = 1 / sqrt(1 + tau^2): beta'' = -c^2 (1 - 2 tau^2) beta^5."""
    path = PATHS["two, zero terminal"]
    for t, toward, other in ((0.8, path.beta, path.alpha), (0.2, path.alpha, path.beta)):
        u, c = 1 - t if toward is path.beta else t, 2 * 0.5  # sigma / beta is 1 / 2 at t = 1 / 2
        if toward is path.alpha:
            c = 2 * 2.0
        tau = c * u
        wanted = -(c**2) * (1 - 2 * tau**2) * (1 + tau**2) ** -2.5
        assert toward.second_derivative(at(t)).item() == pytest.approx(wanted, rel=1e-12)
        beyond = -3 * c**2 * tau * (1 + tau**2) ** -2.5
        assert other.second_derivative(at(t)).item() == pytest.approx(beyond, rel=1e-12)
    for path in PATHS.values():  # clean data, and pure noise where it is pure
        assert path.alpha.second_derivative(at(1.0)).item() == 0
        assert path.beta.second_derivative(at([0.0, 1.0])).isfinite().all()


def test_sigmas_are_the_noise_at_their_nodes():
    sigmas = torch.logspace(-2, 1.7, 50, dtype=F64)
    path = PATHS["sigmas"]
    torch.testing.assert_close(path.alpha(nodes(50)), sigmas, rtol=1e-14, atol=0)
    assert path.boundary.beta0 == 1
    # Geometric levels have a straight logarithm, and so the VE path between their nodes.
    ve = schedules.variance_exploding(sigmas[0].item(), sigmas[-1].item())
    t = torch.linspace(0, 1 - 1 / 50, 333, dtype=F64)
    torch.testing.assert_close(path.alpha(t), ve.alpha(t / (1 - 1 / 50)), rtol=1e-12, atol=0)


@st.composite
def tables(draw):
    kind = draw(st.sampled_from(["betas", "zero terminal", "alphas_cumprod", "sigmas"]))
    n = draw(st.integers(2, 12))
    if kind == "sigmas":
        ratios = draw(st.lists(st.floats(1.01, 5.0), min_size=n, max_size=n))
        return schedules.from_sigmas(np.cumprod(ratios) * draw(st.floats(1e-3, 1.0)))
    betas = draw(st.lists(st.floats(1e-4, 0.9), min_size=n, max_size=n))
    if kind == "alphas_cumprod":
        return schedules.from_alphas_cumprod(np.cumprod(1 - np.array(betas)))
    return schedules.from_betas(betas, zero_terminal_snr=kind == "zero terminal")


@settings(deadline=None, max_examples=60)
@given(path=tables(), seed=st.integers(0, 10**6))
def test_any_table_is_monotone_smooth_and_inverts(path, seed):
    assert path.monotone
    t = torch.rand(64, dtype=F64, generator=torch.Generator().manual_seed(seed)).sort().values
    lam = path.log_snr(t)
    assert (lam.diff() > 0).all()
    k = path.coefficients(t)
    # The inverse, to the rounding of lam (1e-15 of up to 30) over its slope, and of t in a
    # quadratic's root, a few units where a cell is sharply bent.
    slope = 2 * (k.dbeta / k.beta - k.dsigma / k.sigma)
    assert (slope > 0).all()
    gap = (path.time_at_log_snr(lam) - t).abs()
    assert (gap <= 2e-14 * lam.abs().clamp(min=1) / slope + 5e-15).all()


def curve(path):
    """Log-SNR between the finite nodes by its definition, for mpmath."""
    n = path.table
    ts = [mp.mpf(t) for t in nodes(n).flip(0).tolist()]
    ys = [mp.mpf(y) for y in path.log_snr(nodes(n)).flip(0).tolist()]
    if mp.isinf(ys[0]):
        ts, ys = ts[1:], ys[1:]
    D = [(ys[i + 1] - ys[i]) / (ts[i + 1] - ts[i]) for i in range(len(ts) - 1)]
    d = [2 / (1 / a + 1 / b) for a, b in itertools.pairwise(D)]
    if d:
        first, last = (
            min(max((3 * a - b) / 2, a / 3), 3 * a) for a, b in ((D[0], D[1]), (D[-1], D[-2]))
        )
        d = [first, *d, last]
    else:
        d = [D[0], D[0]]

    def log_snr(t):
        i = max(j for j in range(len(D)) if ts[j] <= t)
        q = (t - ts[i]) / (ts[i + 1] - ts[i])
        over = (ys[i + 1] - ys[i]) * (D[i] * q**2 + d[i] * q * (1 - q))
        return ys[i] + over / (D[i] + (d[i] + d[i + 1] - 2 * D[i]) * q * (1 - q))

    return ts[0], ts[-1], log_snr


@settings(deadline=None, max_examples=40)
@given(path=tables(), where=st.floats(0.001, 0.999))
def test_values_and_slopes_are_the_definition(path, where):
    """To 1e-12: a few dozen roundings of log-SNR up to 20 and of its cell's rise."""
    with mp.workdps(50):
        begin, end, log_snr = curve(path) if path.table > 2 else (0, 0, None)
        if log_snr is None:
            return
        t = float(begin + (end - begin) * mp.mpf(where))
        assume((nodes(path.table) - t).abs().min() > 1e-9)  # where a second derivative jumps

        def sigma(t):
            noise = mp.exp(-log_snr(t) / 2)
            return noise / mp.sqrt(1 + noise**2) if preserving else noise

        preserving = path.boundary.beta0 < 1
        k = path.coefficients(t)
        exact = sigma(mp.mpf(t))
        slope = mp.diff(sigma, mp.mpf(t), h=mp.mpf(10) ** -25)
        assert abs(k.sigma.item() / exact - 1) < 1e-12
        assert abs(k.dsigma.item() - slope) < 1e-12 * (abs(slope) + path.table * exact)
        bend = mp.diff(sigma, mp.mpf(t), 2, h=mp.mpf(10) ** -12)
        # The same of a second derivative, whose terms are of the size of slope and table squared.
        size = abs(bend) + path.table * abs(slope) + path.table**2 * exact + slope**2
        assert abs(path.alpha.second_derivative(at(t)).item() - bend) < 1e-11 * size
        assert abs(k.beta.item() ** 2 - (1 - exact**2 if preserving else 1)) < 1e-12


@pytest.mark.parametrize("name", ["linear", "short", "three sigmas", "zero terminal"])
def test_slopes_meet_at_the_inner_nodes(name):
    path = PATHS[name]
    inner = nodes(path.table)[1 : -2 if path.boundary.starts_at_base else -1]
    for f in (path.alpha, path.beta):
        left, right = (f.derivative(inner + h) for h in (-1e-12, 1e-12))
        scale = path.table * (right.abs() + f(inner).abs())
        assert ((left - right).abs() <= 1e-8 * scale).all()  # 1e-12 times a second derivative


@pytest.mark.parametrize("name", PATHS)
def test_both_ends_and_every_node_invert(name):
    path = PATHS[name]
    t = torch.cat([nodes(path.table), at([1.0])])
    back = path.time_at_log_snr(path.log_snr(t))
    # A rounding of log-SNR, 1e-15, over its slope, which is down to .1 in the short table.
    torch.testing.assert_close(back, t, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", PATHS)
def test_the_config_rebuilds_the_table_through_json(name):
    path = PATHS[name]
    again = schedules.from_config(json.loads(json.dumps(path.config)))
    t = torch.linspace(0, 1, 101, dtype=F64)
    assert torch.equal(again.log_snr(t), path.log_snr(t))
    assert again.table == path.table
    assert len(repr(path)) < 200


def test_a_table_of_any_kind_of_numbers():
    wanted = schedules.from_betas([0.125, 0.25]).log_snr(0.3)
    for table in ((0.125, 0.25), np.array([0.125, 0.25]), torch.tensor([0.125, 0.25])):
        assert torch.equal(schedules.from_betas(table).log_snr(0.3), wanted)
    for grad in (False, True):
        betas = torch.tensor([0.125, 0.25], dtype=F64, requires_grad=grad)
        assert torch.equal(schedules.from_betas(betas).log_snr(0.3), wanted)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: schedules.from_betas([]), r"shape \(0,\)"),
        (lambda: schedules.from_betas(0.1), r"shape \(\)"),
        (lambda: schedules.from_betas([[0.1]]), r"shape \(1, 1\)"),
        (lambda: schedules.from_betas([True, False]), "betas"),
        (lambda: schedules.from_betas(None), "no table"),
        (lambda: schedules.from_betas(["a"]), "no table"),
        (lambda: schedules.from_betas([0.1, 1.0]), r"betas\[1\] is 1.0"),
        (lambda: schedules.from_betas([0.0, 0.1]), r"betas\[0\] is 0.0"),
        (lambda: schedules.from_betas([0.1, math.nan, 2.0]), r"betas\[1\] is nan"),
        (lambda: schedules.from_betas([0.5, 1e-20]), "at index 1"),
        (lambda: schedules.from_betas([0.1], 3), "n=3"),
        (lambda: schedules.from_betas("linear", 0), "n=0"),
        (lambda: schedules.from_betas("linear", 10), r"betas\[5\] of the table 'linear'.*larger n"),
        (lambda: schedules.from_betas([0.1], zero_terminal_snr=True), "table of 1"),
        (
            lambda: schedules.from_alphas_cumprod([0.5, 0.6]),
            r"alphas_cumprod\[1\] is 0.6 after 0.5",
        ),
        (lambda: schedules.from_alphas_cumprod([0.5, 0.0, 0.1]), r"alphas_cumprod\[1\] is 0.0"),
        (lambda: schedules.from_alphas_cumprod([0.0]), r"alphas_cumprod\[0\] is 0.0"),
        (lambda: schedules.from_sigmas([3.0, 2.0]), r"sigmas\[1\] is 2.0 after 3.0.*rises"),
        (lambda: schedules.from_sigmas([0.0, 2.0]), r"sigmas\[0\] is 0.0"),
        (lambda: schedules.from_sigmas([1.0, math.inf]), r"sigmas\[1\] is inf"),
    ],
)
def test_a_bad_table_is_named(build, says):
    with pytest.raises(OptionError, match=says):
        build()


def test_an_unknown_table_is_named():
    with pytest.raises(UnknownName, match="scaled_linear"):
        schedules.from_betas("scaled")
