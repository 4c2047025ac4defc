"""rust, torch and torchdiffeq: one call, one grid, the same numbers to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp.solvers.catalogue import METHODS

F32, F64 = torch.float32, torch.float64
ODES = [m.name for m in interp.methods("ode") if m.tableau and "rust" in m.backends]
PEERS = [m.name for m in interp.methods("ode") if m.peer and not m.adaptive]


def wave(t: Tensor, x: Tensor) -> Tensor:
    """Nonlinear, of t and x, with |df/dx| <= 1 and |f| <= 1."""
    return torch.sin(x + 3 * t)


def state(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def rounding(sol: interp.solvers.Solution, x: Tensor) -> float:
    """What two orders of the same sums may differ by.

    A stage rounds a dozen times at the size of the state (below 6), and |df/dx| <= 1 lets what is
    there grow by e^2 over the runs below; time, cast to the state's dtype, counts as three more.
    """
    return 15 * max(sol.stats.nfe, 1) * 6 * math.exp(2) * torch.finfo(x.dtype).eps / 4


@pytest.mark.parametrize("backend", ["torch", "torchdiffeq"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, -0.5)])
@pytest.mark.parametrize("method", ODES)
def test_the_same_numbers_on_one_grid(
    method: str, ends: tuple[float, float], dtype: torch.dtype, backend: str
) -> None:
    if backend == "torchdiffeq" and method not in PEERS:
        pytest.skip("not a fixed-step method there")
    x, (start, stop) = state((5, 3), dtype), ends
    grid = [start + (stop - start) * (k / 9) ** 1.5 for k in range(9)] + [stop]
    between = [(grid[k] + grid[k + 1]) / 2 for k in (0, 4, 8)]
    saves = sorted({*grid[::3], *between}, reverse=stop < start)
    ours = interp.solve(wave, x, ends, method, "rust", grid=grid, save_at=saves)
    theirs = interp.solve(wave, x, ends, method, backend, grid=grid, save_at=saves)
    assert ours.stats.backend == "rust"
    assert theirs.stats.backend == backend
    assert ours.x.dtype == theirs.xs.dtype == dtype
    assert ours.xs.shape == (len(saves), 5, 3)
    assert ours.ts.tolist() == theirs.ts.tolist() == saves
    bound = rounding(ours, x)
    assert float((ours.x - theirs.x).abs().max()) <= bound
    assert float((ours.xs - theirs.xs).abs().max()) <= bound
    assert torch.equal(ours.xs[-1], ours.x)
    assert torch.equal(ours.xs[0], x)


shapes = st.one_of(
    st.tuples(st.integers(0, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 9)),
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)),
    st.just(()),
)


@st.composite
def grids(draw: st.DrawFn) -> list[float]:
    """Strictly monotone times, either way, steps from 0.01 to 0.4."""
    steps = draw(st.lists(st.floats(0.01, 0.4), min_size=1, max_size=5))
    times = [draw(st.floats(-1, 1))]
    sign = draw(st.sampled_from([-1, 1]))
    for step in steps:
        times.append(times[-1] + sign * step)
    return times


@settings(deadline=None, max_examples=60)
@given(
    shape=shapes, dtype=st.sampled_from([F32, F64]), method=st.sampled_from(ODES), grid=grids(),
    fraction=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_rust_is_torch_for_any_shape_and_grid(
    shape: tuple[int, ...], dtype: torch.dtype, method: str, grid: list[float], fraction: float,
    seed: int,
) -> None:  # fmt: skip
    x, ends = state(shape, dtype, seed), (grid[0], grid[-1])
    inside = grid[0] + fraction * (grid[-1] - grid[0])
    saves = sorted({inside, grid[-1]}, reverse=grid[-1] < grid[0])
    ours, theirs = (
        interp.solve(wave, x, ends, method, backend, grid=grid, save_at=saves)
        for backend in ("rust", "torch")
    )
    assert ours.x.shape == theirs.x.shape == x.shape
    assert ours.stats.nfe == theirs.stats.nfe
    if x.numel():
        assert float((ours.xs - theirs.xs).abs().max()) <= rounding(ours, x)


# Around the sizes at which the lock is released (1024), a pass has more than one chunk (2048), and
# threads share it (2^20).
SIZES = [1, 15, 1023, 1025, 2047, 2049, 4097, 70_001, 2**20 - 1, 2**20, 2**20 + 2049]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", SIZES)
def test_sizes_at_which_the_engine_changes_gear(size: int, dtype: torch.dtype) -> None:
    x = state((min(size, 4000), 1), dtype).repeat(-(-size // 4000), 1)[:size]
    for method in ("heun", "dopri5"):
        ours, theirs = (
            interp.solve(wave, x, method=method, backend=b, steps=2, save_at=[0.4, 1.0])
            for b in ("rust", "torch")
        )
        assert float((ours.xs - theirs.xs).abs().max()) <= rounding(ours, x)


@pytest.mark.parametrize("size", [2**20 + 5, 300])
def test_two_runs_are_bit_for_bit_the_same(size: int) -> None:
    x = state((size,), F32)
    first, second = (interp.solve(wave, x, rtol=1e-4, atol=1e-4) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert first.stats.accepted == second.stats.accepted


@pytest.mark.parametrize("backend", ["rust", "torch", "torchdiffeq"])
@pytest.mark.parametrize("method", ["bosh3", "dopri5"])
@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, -1.0)])
def test_adaptive_runs_meet_the_exact_flow(
    ends: tuple[float, float], method: str, backend: str
) -> None:
    x = torch.tensor([[0.5], [0.7], [1.0]], dtype=F64)
    start, stop = ends

    def exact(t: float) -> Tensor:  # dx/dt = -x^2 cos(t) / 4
        return 1 / (1 / x + (math.sin(t) - math.sin(start)) / 4)

    between = [start + f * (stop - start) for f in (0.21, 0.5, 0.83, 1.0)]
    for tolerance in (1e-4, 1e-8):
        sol = interp.solve(
            lambda t, x: -x * x * t.cos() / 4, x, ends, method, backend,
            rtol=tolerance, atol=tolerance, save_at=between,
        )  # fmt: skip
        # Local errors below tol (1 + |x|) add up over the run, grown by (x_end / x)^2 < 4; dense
        # output has an order less than the end of a step, and is allowed as much again.
        truth = torch.stack([exact(t) for t in between])
        assert float((sol.x - truth[-1]).abs().max()) < 30 * tolerance
        assert float((sol.xs - truth).abs().max()) < 60 * tolerance


def bump(t: Tensor, x: Tensor) -> Tensor:
    """Too sudden for the steps that come to it: they are refused."""
    return 40 * torch.exp(-((t - 0.9) ** 2) * 200) - x


def still(t: Tensor, x: Tensor) -> Tensor:
    """Nothing to choose the first step by."""
    return torch.zeros_like(x)


@pytest.mark.parametrize("field", [wave, bump, torch.mul, still])
@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("method", ["bosh3", "dopri5"])
def test_adaptive_rust_takes_the_steps_of_torch(
    method: str, ends: tuple[float, float], field: Callable[[Tensor, Tensor], Tensor]
) -> None:
    x = state((40, 3), F64)
    ours, theirs = (
        interp.solve(field, x, ends, method, backend, rtol=1e-6, atol=1e-6)
        for backend in ("rust", "torch")
    )
    # The same controller on error norms that differ in the last bits.
    assert (ours.stats.accepted, ours.stats.rejected, ours.stats.nfe) == (
        theirs.stats.accepted, theirs.stats.rejected, theirs.stats.nfe,
    )  # fmt: skip
    assert field is not bump or ours.stats.rejected >= 2
    assert float((ours.x - theirs.x).abs().max()) < 1e-11


def test_auto_takes_rust_where_it_can() -> None:
    x = torch.ones(2, 2)
    assert interp.solve(wave, x, steps=2).stats.backend == "rust"
    assert interp.solve(wave, x.double(), steps=2).stats.backend == "rust"
    assert interp.solve(wave, x.bfloat16(), method="heun", steps=2).stats.backend == "torch"
    with torch.no_grad():
        sol = interp.solve(wave, x.requires_grad_(), steps=2)
    assert sol.stats.backend == "rust"
    assert not sol.x.requires_grad


@pytest.mark.parametrize("backend", ["rust", "torch", "torchdiffeq"])
@pytest.mark.parametrize(
    "layout", ["transposed", "expanded", "strided", "negative", "inference", "subclass"]
)
def test_any_layout_of_the_state(layout: str, backend: str) -> None:
    base = state((4, 6), F64)
    pair = torch.complex(base, -base)
    kind = type("Kind", (torch.Tensor,), {})
    with torch.inference_mode():
        inferred = base.clone()
    x = {
        "transposed": base.T, "expanded": base[:1].expand(4, 6), "strided": base[:, ::2],
        "negative": pair.conj().imag, "inference": inferred, "subclass": base.as_subclass(kind),
    }[layout]  # fmt: skip
    before = x.clone()
    sol = interp.solve(wave, x, method="heun", backend=backend, steps=3)
    plain = interp.solve(wave, before.contiguous(), method="heun", backend=backend, steps=3)
    assert torch.equal(sol.x, plain.x)
    assert torch.equal(x, before)  # the caller's state is not touched
    sol.x.add_(1)
    assert torch.equal(x, before)  # nor handed back


@pytest.mark.parametrize("backend", ["rust", "torch", "torchdiffeq"])
@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0)])
@pytest.mark.parametrize("steps", [4, None])
def test_no_elements(shape: tuple[int, ...], backend: str, steps: int | None) -> None:
    method = "dopri5" if steps is None else "rk38"
    x = torch.empty(shape)
    sol = interp.solve(wave, x, method=method, backend=backend, steps=steps, save_at=[0.5, 1.0])
    assert sol.x.shape == shape
    assert sol.xs.shape == (2, *shape)
    assert sol.stats.status == "done"


@pytest.mark.parametrize("backend", ["rust", "torch", "torchdiffeq"])
def test_the_time_a_field_gets(backend: str) -> None:
    seen: list[Tensor] = []

    def field(t: Tensor, x: Tensor) -> Tensor:
        seen.append(t)
        return -x

    for dtype in (F32, F64):
        seen.clear()
        interp.solve(field, state((2, 2), dtype), (0.1, 0.7), "rk38", backend, steps=3)
        assert all(t.ndim == 0 and t.dtype == dtype for t in seen)
        grid = torch.linspace(0.1, 0.7, 4, dtype=F64)
        h = 0.2
        # Four stages a step, at 0, 1/3, 2/3 and 1 of it; rounded to the state's dtype.
        times = [float(t) + c * h for t in grid[:-1] for c in (0, 1 / 3, 2 / 3, 1)]
        eps = torch.finfo(dtype).eps
        if backend == "torchdiffeq":  # which evaluates once more, for its own dense output
            seen.pop()
        assert [float(t) for t in seen] == pytest.approx(times, abs=eps)


def test_methods_that_share_a_tableau_name_their_peer() -> None:
    # torchdiffeq's rk4 is the 3/8 rule, its heun2 is Heun's method of order two.
    peers = {name: m.peer for name, m in METHODS.items() if m.peer}
    assert peers == {
        "euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk38": "rk4",
        "bosh3": "bosh3", "dopri5": "dopri5",
    }  # fmt: skip
