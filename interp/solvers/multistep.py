"""Multistep exponential integrators: a polynomial through the last answers, under the integral.

All of them are x_r = kept x_t + beta_r sum_j w_j P_{i - j} with P the data estimate, or the noise
estimate with the roles of beta and sigma exchanged; they differ in the weights. A step from or to where
log-SNR is infinite, and the first one, is the first-order one; ``last_order=2`` makes that to clean data
one of second order (`ending`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import real, whole
from ..errors import OptionError, UnknownName
from .ancestral import exact_step, increments, one_step, towards_data
from .exponential import (
    POINTS,
    Array,
    Levels,
    all_elements,
    first_order,
    integrals,
    moments,
    weights,
)
from .programme import Move, rows

Counts = NDArray[np.int64]


def choice(name: str, options: Mapping[str, Any], what: str, known: tuple[str, ...]) -> str:
    """An option that is one of a few names, the first unless it is given."""
    value = options.get(what, known[0])
    if value not in known:
        raise UnknownName.of(f"{what} of {name}", value, known)
    return str(value)


def answers(levels: Levels, order: int, falling: object = False) -> Counts:
    """How many answers each step can use: those since log-SNR is finite, at most ``order``.

    Where it is ``falling``, nor more than there are steps left (the option lower_order_final): with few
    steps, the last of which are long, the polynomials of high order miss most there.
    """
    if not isinstance(falling, bool):
        raise OptionError(f"lower_order_final={falling!r} is neither True nor False. Give one.")
    finite, n = levels.finite, len(levels) - 1
    first = int(np.argmax(finite))
    count = np.clip(np.arange(n) - first + 1, 1, order)
    count = np.minimum(count, np.arange(n, 0, -1)) if falling else count
    return np.where(finite[1:] & finite[:-1], count, 0)


def looking_back(levels: Levels, i: Counts, back: Counts) -> Array:
    """(lambda of the levels ``back`` - lambda_i) / h_i: (steps, m) numbers to (steps, ..., m) nodes."""
    lam, h = levels.lam, np.diff(levels.lam, axis=0)
    return np.moveaxis(lam[back] - lam[i][:, None], 1, -1) / h[i][..., None]


def extrapolated(
    levels: Levels, count: Counts, variable: Array | None = None, eta: float = 0.0
) -> Array:
    """The exact integrals of the polynomials through ``count`` answers: (steps, ..., answers), newest first.

    In lambda, or in another ``variable``: its values at the levels and, after them in each row, at
    the points of the step, (levels, ..., 1 + 16). Zero where there are fewer answers. With ``eta`` for
    the SDE of a data estimate (see `noising`).
    """
    z = (1.0 + eta) * np.diff(levels.lam, axis=0)
    out = np.zeros((*z.shape, int(count.max(initial=1))))
    for m in set(count.tolist()) - {0}:
        i = np.flatnonzero(count == m)
        back = i[:, None] - np.arange(m)
        if variable is None:
            out[i, ..., :m] = weights(z[i], looking_back(levels, i, back))
        else:
            nodes = np.moveaxis(variable[back][..., 0], 1, -1)
            out[i, ..., :m] = integrals(z[i], variable[i, ..., 1:], nodes)
    return out


def multistep(
    levels: Levels, count: Counts, shares: Array, corrections: Array | None = None, eta: float = 0.0
) -> list[Move]:
    """The moves of weights.

    Args:
        levels: the grid.
        count: how many answers a step uses; with none it is the first-order one.
        shares: their weights in units of the next beta, (steps, ..., answers), the newest first.
        corrections: what is added to the state at the beginning of a step before it is taken: the same in
            units of its own beta; zero where there is none.
        eta: of the SDE whose steps they are, of a data estimate; 0 is the flow.
    """
    t, r = levels[:-1], levels[1:]
    kept, gain, noise = first_order(t, r, eta * (r.lam - t.lam) if eta else 0.0)
    held = levels.beta[1:, ..., None] * shares
    if corrections is not None:
        more = np.zeros((*kept.shape, max(shares.shape[-1], corrections.shape[-1])))
        more[..., : shares.shape[-1]] = held
        changed = ~all_elements(corrections == 0)
        more[changed, ..., : corrections.shape[-1]] += (kept * levels.beta[:-1])[
            changed, ..., None
        ] * corrections[changed]
        held = more
    first = count == 0
    held[first, ..., 0] += gain[first]
    used = np.stack([~all_elements(held[..., j] == 0) for j in range(held.shape[-1])], 1).tolist()
    parts = [rows(held[..., j]) for j in range(held.shape[-1])]
    at, kind, backwards = levels.t.tolist(), levels.kind, range(len(parts) - 1, -1, -1)
    kicks = increments(t, r, noise)
    moves = []
    for i, a in enumerate(rows(kept)):
        slopes = {i - j: parts[j][i] for j in backwards if used[i][j]}
        moves.append(Move(at[i], kind, 0.0, a, slopes, kicks[i], at[i + 1]))
    for i in np.flatnonzero(levels.leaves_clean).tolist():
        moves[i] = exact_step(levels, i, i)
    return moves


def ending(levels: Levels, moves: list[Move], options: Mapping[str, Any]) -> list[Move]:
    """The moves with a last step to clean data of ``last_order``: 1, as published, or 2.

    Near data the noise estimate n is a line in s = sigma / beta, n = a + b s, along which the data estimate
    is D = x_1 - b s^2 / 2: of second order the step weighs the last two D by the line in s^2 at s = 0,
    or the last two n by the mean of their line over the step. Where the density is smooth at the last s,
    that is worth much: D alone is off by s^2 / 2 times the score.
    """
    order = whole("last_order", options.get("last_order", 1), 1, 2)
    side = levels if levels.kind == "data" else levels.other
    finite = levels.finite[-3:].tolist()
    if order == 1 or (side.sigma[-1] != 0).any() or finite != [True, True, False]:
        return moves
    before, s = np.exp(-side.lam[-3:-1])
    _, gain, _ = one_step(levels[-2:])
    share = gain[0] * (
        s**2 / (before**2 - s**2) if levels.kind == "data" else 0.5 * s / (before - s)
    )
    (more,) = rows(share[None])
    slopes, i = dict(moves[-1].slopes), len(moves) - 1
    slopes[i] = slopes.get(i, 0.0) + more
    slopes[i - 1] = slopes.get(i - 1, 0.0) - more
    return [*moves[:-1], replace(moves[-1], slopes=slopes)]


def dpmpp_2m(levels: Levels, options: Mapping[str, Any], eta: float = 0.0) -> list[Move]:
    """x_r = kept x + gain (D_i + (D_i - D_{i-1}) / (2 ratio)) + noise,  ratio = h_{i-1} / h_i.

    First and last step are of order 1. ``variant="heun"`` weighs the difference by the exact integral
    of its line, (M_1 / M_0) / ratio, in place of the midpoint's 1 / (2 ratio). With ``eta`` the old noise
    is damped by K = eta h and as much is drawn anew: eta = 1 is the reverse SDE (dpm++2m_sde).

    Source: Lu et al. 2022 (2211.01095), algorithm 2 and eq. 19.
    """
    heun = choice("dpm++2m", options, "variant", ("midpoint", "heun")) == "heun"
    eta = real("eta", options.get("eta", eta))
    if eta:
        towards_data(levels[:-1], levels[1:], "dpm++2m_sde")
    with np.errstate(invalid="ignore"):
        count, h = answers(levels, 2, falling=True), np.diff(levels.lam, axis=0)
    i = np.flatnonzero(count == 2)
    shares = np.zeros((*h.shape, 2))
    m0, m1 = moments((1.0 + eta) * h, 2)
    shares[count > 0, ..., 0] = m0[count > 0]
    half = (m1[i] if heun else 0.5 * m0[i]) * h[i] / h[i - 1]
    shares[i, ..., 0] += half
    shares[i, ..., 1] -= half
    return ending(levels, multistep(levels, count, shares, eta=eta), options)


def dpmpp_2m_sde(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`dpmpp_2m` with eta = 1."""
    return dpmpp_2m(levels, options, eta=1.0)


def dpmpp_3m(levels: Levels, options: Mapping[str, Any], eta: float = 0.0) -> list[Move]:
    """The exact integral of the parabola through the last three D, of order 3.

    The first step's own error, of second order, is taken back at the second step, which knows the
    line through both ends; that costs no evaluation. ``published=True`` is the printed update, which
    weighs the second divided difference by half of its integral and is of order 2. Its second step is
    dpm++2m's by the midpoint, as in the authors' own program and in diffusers (k-diffusion's is by the
    exact integral of the line). ``lower_order_final=True`` takes the last step but one by order 2, as
    diffusers does below 15 steps (see `answers`). With ``eta`` as `dpmpp_2m` (dpm++3m_sde).

    Source: Lu et al. 2022 (2211.01095), appendix; as k-diffusion and diffusers have it.
    """
    published = options.get("published", False)
    if not isinstance(published, bool):
        raise OptionError(f"published={published!r} is neither True nor False. Give one.")
    eta = real("eta", options.get("eta", eta))
    if eta:
        towards_data(levels[:-1], levels[1:], "dpm++3m_sde")
    count = answers(levels, 3, options.get("lower_order_final", False))
    if published:
        moves = multistep(levels, count, _printed(levels, count, eta), eta=eta)
        return ending(levels, moves, options)
    shares, corrections = extrapolated(levels, count, eta=eta), np.zeros((*levels.lam[1:].shape, 2))
    if len(count) > 1 and not levels.leaves_clean[0]:
        h = np.diff(levels.lam[:2], axis=0)
        ahead = np.full_like(h, 0.5)
        if count[0]:
            ahead = weights((1.0 + eta) * h, np.broadcast_to([0.0, 1.0], (*h.shape, 2)))[..., 1]
        corrections[1] = np.stack([ahead[0], -ahead[0]], -1)
    return ending(levels, multistep(levels, count, shares, corrections, eta), options)


def dpmpp_3m_sde(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`dpmpp_3m` with eta = 1.

    With ``published=True`` k-diffusion's weights, but for the second step. diffusers 0.42 weighs the second
    difference by -1/2 - M_1 / z, z = 2 h, in place of 1/2 - M_1 / z, which does not vanish with the step.
    """
    return dpmpp_3m(levels, options, eta=1.0)


def _printed(levels: Levels, count: Counts, eta: float) -> Array:
    h = np.diff(levels.lam, axis=0)
    out = np.zeros((*h.shape, 3))
    m0, m1, m2 = moments((1.0 + eta) * h, 3)
    out[count > 0, ..., 0] = m0[count > 0]
    i = np.flatnonzero(count == 2)
    half = 0.5 * m0[i] * h[i] / h[i - 1]
    out[i, ..., 0] += half
    out[i, ..., 1] -= half
    i = np.flatnonzero(count == 3)
    r, s = h[i - 1] / h[i], h[i - 2] / h[i]
    none = np.zeros_like(r)
    one, two = np.stack([1 / r, -1 / r, none], -1), np.stack([none, 1 / s, -1 / s], -1)
    second = (one - two) / (r + s)[..., None]
    out[i] += m1[i][..., None] * (one + r[..., None] * second) + 0.5 * m2[i][..., None] * second
    return out


def unipc(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """A predictor of order p, and a corrector that knows the answer at the step's end.

    The corrected state follows from the answer that the next step asks for anyway; it is corrected
    everywhere but after the last step. Of order 2 the predictor weighs the difference by B(h) / 2, the
    corrector of order 1 likewise: B(h) = exp(h) - 1 ("bh2", in lambda's own sign) or h ("bh1").

    Args:
        levels: the grid.
        options: order (2), variant ("bh2", "bh1"), prediction ("data", "noise"), lower_order_final (True, see
            `answers`), whose last step of order 1 leaves a run of order 2 whatever p; False keeps p there
            and the run is of order p + 1, but for the first-order step to clean data.

    Source: Zhao, Bai, Rao, Zhou, Lu 2023 (2302.04867), algorithms 1, 2 and 5 to 8.
    """
    p = whole("order", options.get("order", 2), 1, 4)
    bh1 = choice("unipc", options, "variant", ("bh2", "bh1")) == "bh1"
    if choice("unipc", options, "prediction", ("data", "noise")) == "noise":
        levels = levels.other
    with np.errstate(all="ignore"):
        h = np.diff(levels.lam, axis=0)
        first = -np.expm1(-h)
    B = h if bh1 else first
    count = answers(levels, p, options.get("lower_order_final", True))
    shares = extrapolated(levels, count)
    i = np.flatnonzero(count == 2)
    if len(i):
        half = 0.5 * B[i] * h[i] / h[i - 1]
        shares[i, ..., 0], shares[i, ..., 1] = first[i] + half, -half
    corrections = np.zeros((*h.shape, shares.shape[-1] + 1))
    told = ~levels.leaves_clean[:-1]  # the steps whose end the next one corrects
    i = np.flatnonzero(told & (count[:-1] <= 1) & all_elements(np.isfinite(B[:-1])))
    corrections[i + 1, ..., 0], corrections[i + 1, ..., 1] = 0.5 * B[i], -0.5 * B[i]
    for q in set(count[:-1][told].tolist()) - {0, 1}:
        i = np.flatnonzero(told & (count[:-1] == q))
        better = weights(h[i], looking_back(levels, i, i[:, None] + 1 - np.arange(q + 1)))
        better[..., 1:] -= shares[i, ..., :q]
        corrections[i + 1, ..., : q + 1] = better
    return ending(levels, multistep(levels, count, shares, corrections), options)


def deis(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """Polynomials through the last noise estimates: in log rho = -lambda, in rho = sigma / beta, or in t.

    Args:
        levels: the grid.
        options: order (3), variant ("log_rho", "rho", "t"): of the variable; lower_order_final (see
            `answers`), as diffusers does below 15 steps. As published the first step
            is of order 1, whose error of second order stays.

    Source: Zhang, Chen 2023 (2204.13902), eq. 14 and 15 (t: tAB, rho: rhoAB).
    """
    levels = levels.other
    variant = choice("deis", options, "variant", ("log_rho", "rho", "t"))
    order = whole("order", options.get("order", 3), 1, 4)
    count = answers(levels, order, options.get("lower_order_final", False))
    if variant == "log_rho":
        return ending(levels, multistep(levels, count, extrapolated(levels, count)), options)
    i = np.flatnonzero(count > 0)
    variable = np.full((*levels.lam.shape, 1 + len(POINTS)), np.nan)
    if variant == "t":
        variable[..., 0] = levels.t.reshape(-1, *(1,) * (levels.lam.ndim - 1))
        variable[i, ..., 1:] = _times_inside(levels, i)
    else:
        with np.errstate(over="ignore"):
            variable[..., 0] = np.exp(levels.lam)
        h = np.diff(levels.lam, axis=0)[i]
        variable[i, ..., 1:] = np.exp(levels.lam[i][..., None] + h[..., None] * POINTS)
    shares = extrapolated(levels, count, variable)
    return ending(levels, multistep(levels, count, shares), options)


def _times_inside(levels: Levels, i: Counts) -> Array:
    """The times at which lambda is at the `POINTS` of the steps."""
    if levels.lam.ndim > 1:
        raise OptionError(
            'variant="t" of deis needs the time of each log-SNR, which differs between the elements of '
            'this path. Give variant="log_rho" or "rho".'
        )
    lam = levels.lam[i][..., None] + np.diff(levels.lam, axis=0)[i][..., None] * POINTS
    return levels.at(lam.ravel()).t.reshape(lam.shape)


_ADAMS = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def ipndm(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """DDIM's step with Adams and Bashforth's combination of the last noise estimates, as on even steps.

    Of second order on any smooth grid, whatever ``order`` (4): the combination is the mean of n over the
    step's index, where the step needs that over sigma / beta.

    Source: Zhang, Chen 2023 (2204.13902), section 3.3 (iPNDM), after Liu, Ren, Lin, Zhao 2022 (2202.09778).
    """
    levels = levels.other
    _, gain, _ = one_step(levels)
    count = answers(levels, whole("order", options.get("order", 4), 1, 4))
    with np.errstate(all="ignore"):
        unit = gain / levels.beta[1:]
    shares = np.zeros((*gain.shape, int(count.max(initial=1))))
    for m in set(count.tolist()) - {0}:
        shares[count == m, ..., :m] = unit[count == m][..., None] * _ADAMS[m]
    return ending(levels, multistep(levels, count, shares), options)


def pndm(levels: Levels, options: Mapping[str, Any]) -> list[Move]:
    """`ipndm` of order 4 after three steps of Runge and Kutta's in DDIM's step.

        n_2 at x_2 = phi(x, n_1, t, m),  n_3 at x_3 = phi(x, n_2, t, m),  n_4 at x_4 = phi(x, n_3, t, r),
        x_r = phi(x, (n_1 + 2 n_2 + 2 n_3 + n_4) / 6, t, r)

    with phi DDIM's step and m = (t + r) / 2, on a table half-way between the indices: nine evaluations
    more than steps. Of second order, as `ipndm`; the step to clean data is as the others. Where sigma /
    beta falls by orders of magnitude in a step such weights magnify: from very noisy starts (above about
    1e3) an even grid ends far off, and grid="karras" does not.

    Source: Liu, Ren, Lin, Zhao 2022 (2202.09778), eq. 12 and 13, algorithm 2.
    """
    levels = levels.other
    starts = np.flatnonzero(levels.finite[:-1] & levels.finite[1:])[:3]
    t, r = levels[starts], levels[starts + 1]
    middle = Levels.of(levels.path, ((t.t + r.t) / 2).tolist()).other if len(starts) else t
    (near, half, _), (far, gain, _) = first_order(t, middle), first_order(t, r)
    m, to_middle = middle.t.tolist(), (rows(near), rows(half))
    to_end = (rows(far), rows(gain), rows(gain / 3), rows(gain / 6))
    kept, whole, _ = one_step(levels)
    shares = [rows(whole * c) for c in _ADAMS[4]]
    times, kept_rows, begun = levels.t.tolist(), rows(kept), set(starts.tolist())
    told = levels.finite.tolist()
    moves: list[Move] = []
    firsts: list[int] = []  # numbers of the answers at the steps' beginnings
    n = 0
    for i in range(len(kept_rows)):
        at, end, k = times[i], times[i + 1], len(firsts)
        if i not in begun and not (told[i] and k >= 3):
            moves.append(exact_step(levels, i, n))
            n += 1
            continue
        firsts.append(n)
        if i not in begun:
            slopes = {firsts[-1 - j]: share[i] for j, share in enumerate(shares)}
            moves.append(Move(at, levels.kind, 0.0, kept_rows[i], slopes, (), end))
            n += 1
            continue
        (a, b), (c, full, third, sixth) = (tuple(v[k] for v in w) for w in (to_middle, to_end))
        mean = {n: sixth, n + 1: third, n + 2: third, n + 3: sixth}
        moves += [
            Move(at, levels.kind, a, 0.0, {n: b}),
            Move(m[k], levels.kind, a, 0.0, {n + 1: b}),
            Move(m[k], levels.kind, c, 0.0, {n + 2: full}),
            Move(end, levels.kind, c, 0.0, mean, (), end),
        ]
        n += 4
    return moves
