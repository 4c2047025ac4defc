"""Every exact answer against the same laws in 40 digits, from one end of the path to the other."""

from dataclasses import dataclass

import mpmath as mp
import pytest
import torch

from interp import Interpolant, schedules
from interp.exact import Empirical, Gaussian, Mixture

mp.mp.dps = 40


def at(t):
    return torch.tensor(t, dtype=torch.float64)


@dataclass(frozen=True)
class Digits:
    """A path in mpmath beside the same in torch."""

    path: Interpolant
    alpha: object
    beta: object
    gamma: object


def _bridge(size):
    return Interpolant(
        lambda t: 1 - t, lambda t: t, lambda t: size * torch.sqrt(t * (1 - t)), gaussian_base=False
    )


PATHS = {
    "linear": Digits(schedules.linear(), lambda t: 1 - t, lambda t: t, lambda t: mp.mpf(0)),
    "trigonometric": Digits(
        schedules.trigonometric(),
        lambda t: mp.cos(mp.pi * t / 2),
        lambda t: mp.sin(mp.pi * t / 2),
        lambda t: mp.mpf(0),
    ),
    "variance_preserving": Digits(
        schedules.variance_preserving(0.1, 20.0),
        lambda t: mp.sqrt(-mp.expm1(2 * _log_beta(1 - t))),
        lambda t: mp.exp(_log_beta(1 - t)),
        lambda t: mp.mpf(0),
    ),
    "bridge": Digits(
        _bridge(0.5), lambda t: 1 - t, lambda t: t, lambda t: mp.mpf(0.5) * mp.sqrt(t * (1 - t))
    ),
}


def _log_beta(u):
    return -(u**2) * (mp.mpf(20) - mp.mpf(0.1)) / 4 - u * mp.mpf(0.1) / 2


def matrix(tensor):
    return mp.matrix(tensor.tolist())


def reference(digits, pairs, t, x):
    """All posterior means at x by the joint normal law of (I, dI/dt, x0, x1, z), in 40 digits.

    ``pairs``: (weight, m0, C0, m1, C1, K) as mpmath matrices.
    """
    T = mp.mpf(t)
    a, b, g = digits.alpha(T), digits.beta(T), digits.gamma(T)
    da, db = mp.diff(digits.alpha, T), mp.diff(digits.beta, T)
    dg = mp.diff(digits.gamma, T)
    d, one = len(x), mp.eye(len(x))
    found = []
    for w, m0, C0, m1, C1, K in pairs:
        S = a * a * C0 + b * b * C1 + g * g * one + a * b * (K + K.T)
        r = x - a * m0 - b * m1
        y = mp.lu_solve(S, r)
        density = w * mp.exp(-(r.T * y)[0] / 2) / mp.sqrt(mp.det(S) * (2 * mp.pi) ** d)
        base, data = m0 + (a * C0 + b * K) * y, m1 + (b * C1 + a * K.T) * y
        latent = g * y
        gain = b * C1 + a * K.T
        within = C1 - gain * mp.inverse(S) * gain.T
        velocity = da * base + db * data + dg * latent
        found.append((density, velocity, -y, data, base, latent, within))
    total = sum(f[0] for f in found)
    shares = [f[0] / total for f in found]
    names = ("velocity", "score", "data", "base", "latent")
    answer = {
        name: sum((s * f[1 + i] for s, f in zip(shares, found, strict=True)), mp.zeros(d, 1))
        for i, name in enumerate(names)
    }
    spread = mp.zeros(d, d)
    for s, f in zip(shares, found, strict=True):
        apart = f[3] - answer["data"]
        spread += s * (f[6] + apart * apart.T)
    return {**answer, "posterior_cov": spread, "log_density": mp.matrix([mp.log(total)])}


def check(field, t, x, wanted, rtol):
    """Each element to ``rtol`` of the largest; 1e-30 for what is too small to be left in float64."""
    found = field(t, at([[float(v) for v in x]]))[0].flatten().tolist()
    flat = [wanted[i, j] for i in range(wanted.rows) for j in range(wanted.cols)]
    size = max(abs(v) for v in flat)
    for one, other in zip(found, flat, strict=True):
        assert abs(mp.mpf(one) - other) <= rtol * size + 1e-30, (field, t, found, flat)


A = at([[1.0, 0.3], [0.3, 0.5]])
B = at([[0.4, -0.2], [-0.2, 0.9]])
TARGET = Mixture([0.25, 0.75], at([[1.0, 2.0], [-1.0, 0.5]]), [A, B])
BASE = Mixture([0.5, 0.5], at([[2.0, 0.0], [-1.0, 1.0]]), [B, 0.6])
TIMES = (1e-6, 0.01, 0.3, 0.77, 0.999, 1 - 1e-6)
POINT = mp.matrix(["0.75", "-0.5"])

VIEWS = ("velocity", "score", "data", "base", "latent", "posterior_cov", "log_density")


def pairs_of(base, target, cross=None):
    zero = torch.zeros(target.dim)
    starts = (
        [(1.0, zero, torch.eye(target.dim))]
        if base is None
        else list(zip(base.weights, base.means, base.covs, strict=True))
    )
    K = mp.zeros(target.dim) if cross is None else matrix(cross)
    return [
        (mp.mpf(float(w0)) * mp.mpf(float(w1)), matrix(m0), matrix(C0), matrix(m1), matrix(C1), K)
        for w0, m0, C0 in starts
        for w1, m1, C1 in zip(target.weights, target.means, target.covs, strict=True)
    ]


@pytest.mark.parametrize("base", [None, BASE], ids=["standard", "mixture"])
@pytest.mark.parametrize("name", PATHS)
def test_independent_ends(name, base):
    """To 1e-14: matrices of condition 10, sums of a few terms, and nothing cancels at either end."""
    digits = PATHS[name]
    if base is None and not digits.path.gaussian_base:
        base = Gaussian(torch.zeros(2), 1.0)
    pairs = pairs_of(base, TARGET)
    for t in TIMES:
        wanted = reference(digits, pairs, t, POINT)
        for view in VIEWS:
            field = getattr(TARGET, view)(digits.path, base)
            check(field, t, POINT, wanted[view], 1e-14)


@pytest.mark.parametrize("name", PATHS)
def test_correlated_ends(name):
    """To 1e-13, since matrices without a common basis are solved with: condition 10 in each step."""
    digits, start, end = PATHS[name], Gaussian(BASE.means[0], B), Gaussian(TARGET.means[0], A)
    cross = at([[0.3, 0.1], [-0.2, 0.25]])
    pairs = pairs_of(start, end, cross)
    for t in TIMES:
        wanted = reference(digits, pairs, t, POINT)
        for view in VIEWS:
            field = getattr(end, view)(digits.path, start, cross)
            check(field, t, POINT, wanted[view], 1e-13)


@pytest.mark.parametrize("name", ["linear", "trigonometric", "variance_preserving"])
def test_a_data_set(name):
    """To 1e-16 times the exponents, of up to 10 / S, which is 1e3 at 0.77 and 1e7 at 0.999."""
    digits, points = PATHS[name], at([[1.0, 2.0], [-1.0, 0.5], [0.75, -0.375], [0.5, -0.75]])
    target = Empirical(points, chunk=3)
    pairs = [
        (mp.mpf(1) / 4, mp.zeros(2, 1), mp.eye(2), matrix(d), mp.zeros(2), mp.zeros(2))
        for d in points
    ]
    for t in (1e-6, 0.01, 0.3, 0.77, 0.999):
        wanted = reference(digits, pairs, t, POINT)
        for view in VIEWS:
            field = getattr(target, view)(digits.path)
            check(field, t, POINT, wanted[view], 1e-13 if t < 0.9 else 1e-9)
