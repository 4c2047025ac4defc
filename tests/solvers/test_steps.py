"""How an adaptive run chooses its steps: controllers and norms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import OptionError, UnknownName, Unsupported
from interp.solvers.control import gains

F64 = torch.float64
ADAPTIVE = [m.name for m in interp.methods("ode") if m.adaptive and "rust" in m.backends]


def kick(t: Tensor, x: Tensor) -> Tensor:
    """Slow, then fast, then slow again."""
    return -x * (1 + 30 * torch.exp(-100 * (t - 0.5) ** 2))


def rows(n: int = 4) -> Tensor:
    return torch.linspace(0.5, 2, 3 * n, dtype=F64).reshape(n, 3)


@pytest.mark.parametrize("norm", ["rms", "max", "rows"])
@pytest.mark.parametrize("controller", ["i", "pi", "pid", (0.4, 0.3, 0.0), [0.1, 0.4, 0.05]])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_backends_take_the_same_steps(method: str, controller: Any, norm: str) -> None:
    seen: dict[str, list[float]] = {"rust": [], "torch": []}
    ends = [
        interp.solve(
            kick, rows(), (0.0, 1.0), method, backend, rtol=1e-7, atol=1e-7, controller=controller,
            norm=norm, callback=lambda s, steps=steps: steps.append(s.t),
        ).x
        for backend, steps in seen.items()
    ]  # fmt: skip
    # A rounding of the error moves a step by as little; it does not grow.
    assert seen["rust"] == pytest.approx(seen["torch"], rel=1e-6)
    assert float((ends[0] - ends[1]).abs().max()) < 1e-12
    integral = 1 + 30 * math.sqrt(math.pi / 100) * math.erf(5)
    truth = rows() * math.exp(-integral)
    assert float((ends[0] - truth).abs().max()) < 1e-5  # a hundred times the tolerance


def test_coefficients_are_those_published() -> None:
    # Hairer and Wanner's PI for dopri5: err^-(1/5 - 0.75 * 0.04) err_before^0.04.
    assert gains("pi", 5) == pytest.approx((0.17, -0.04, 0.0))
    assert gains("i", 5) == (0.2, 0.0, 0.0)
    # Soderlind 2003, H312PID: k times the exponents are 1/18, 1/9, 1/18.
    assert [18 * 5 * g for g in gains("pid", 5)] == pytest.approx([1.0, 2.0, 1.0])
    assert gains((0.2, 0.65, 0.0), 5) == pytest.approx(gains("pi", 5))


def test_a_pid_takes_smoother_steps() -> None:
    """The steps' logarithms jump less from one to the next than those of a controller without memory."""

    def roughness(controller: str) -> float:
        times = [0.0]
        interp.solve(
            kick, rows(), rtol=1e-8, atol=1e-8, controller=controller, first_step=1e-2,
            callback=lambda s: times.append(s.t),
        )  # fmt: skip
        lengths = torch.tensor(times, dtype=F64).diff()[:-1].log()
        return float(lengths.diff().diff().abs().mean())

    assert roughness("pid") < 0.5 * roughness("i")


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_norms_of_one_difficult_row(backend: str) -> None:
    """Of n rows one moves: the mean square thins its error by n, the others do not."""

    def field(t: Tensor, x: Tensor) -> Tensor:
        still = torch.zeros(len(x), 1, dtype=F64)
        still[0] = 1.0
        return still * kick(t, x)

    steps = {}
    for n in (1, 400):
        x = torch.ones(n, 3, dtype=F64)
        for norm in ("rms", "max", "rows"):
            steps[n, norm] = interp.solve(field, x, norm=norm, backend=backend).stats.steps
    assert steps[400, "max"] == steps[1, "max"]
    assert steps[400, "rows"] == steps[1, "rows"] == steps[1, "rms"]
    assert steps[400, "rms"] < 0.8 * steps[1, "rms"]  # 20^(1/5) = 1.8 times as long


def test_what_makes_no_sense_is_refused() -> None:
    def run(**options: Any) -> None:
        interp.solve(lambda t, x: -x, rows(), **options)

    with pytest.raises(UnknownName, match="pi"):
        run(controller="p")
    for bad in (3.0, (1.0, 2.0), (0.2, math.nan, 0.0), (0.2, -0.1, 0.0), ("a", 1, 2)):
        with pytest.raises(OptionError, match="controller"):
            run(controller=bad)
    for norm in ("l3", 2):
        with pytest.raises(UnknownName, match="norm"):
            run(norm=norm)
    with pytest.raises(UnknownName, match="option of rk4"):
        run(method="rk4", steps=3, norm="max")
    with pytest.raises(Unsupported, match="controller and a norm of its own"):
        run(backend="torchdiffeq", norm="max")
