"""Gradients of a solve: against finite differences, against each other, and what they hold alive."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import interp
from interp import schedules
from interp.errors import OptionError, SolveError, UnknownName, Unsupported
from interp.solvers.catalogue import find
from interp.solvers.gradients import GRADIENTS
from interp.testing.orders import PROBLEMS

F64 = torch.float64
PATH = schedules.variance_preserving()
BACKENDS = [
    ("direct", "torch"), ("checkpointed", "torch"), ("adjoint", "torch"), ("adjoint", "rust"),
    ("reversible", "torch"),
]  # fmt: skip


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Bent(nn.Module):
    """A small network with a parameter that is not used and one that is used late."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(tensor(3, 5, seed=1))
        self.last = nn.Parameter(tensor(5, 3, seed=2) / 2)
        self.unused = nn.Parameter(tensor(2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first + t) @ self.last


def terms(model: nn.Module) -> dict[str, Any]:
    return {
        "by hand": interp.ODE(model),
        "velocity": PATH.ode(model),
        "noise": PATH.ode(model, view="noise"),
        "data": PATH.ode(model, view="data"),
    }


def value(term: Any, x: Tensor, **options: Any) -> Tensor:
    """A number made of the end and a state on the way."""
    sol = interp.solve(term, x, (0.5, 1.0), save_at=[0.75, 1.0], **options)
    return sol.xs[0].sin().sum() + sol.x.square().sum()


def gradients(model: nn.Module, term: Any, x: Tensor, **options: Any) -> list[Tensor]:
    x = x.clone().requires_grad_()
    wanted = [x, *(p for name, p in model.named_parameters() if name != "unused")]
    return list(torch.autograd.grad(value(term, x, **options), wanted))


def difference(model: nn.Module, term: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """Central differences along one random direction of x and of each parameter."""
    wanted = [x, *(p.data for name, p in model.named_parameters() if name != "unused")]
    h, slopes = 1e-5, []
    for i, place in enumerate(wanted):
        direction, ends = tensor(*place.shape, seed=20 + i), []
        for sign in (1, -1):
            place += sign * h * direction
            with torch.no_grad():
                ends.append(value(term, x, **options))
            place -= sign * h * direction
        slopes.append((ends[0] - ends[1]) / (2 * h))
    return slopes


FIXED = {"method": "rk4", "steps": 8}
ADAPTIVE = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize(
    ("name", "options"), [("by hand", FIXED), ("noise", FIXED), ("by hand", ADAPTIVE)], ids=str
)
@pytest.mark.parametrize(("gradient", "backend"), BACKENDS)
def test_gradients_are_those_of_finite_differences(
    name: str, gradient: str, backend: str, options: dict[str, Any]
) -> None:
    model = Bent()
    term, x = terms(model)[name], tensor(4, 3)
    how = {"gradient": gradient, "backend": backend, **options}
    if gradient == "adjoint" and options is FIXED:
        how["steps"] = 64
    found, slopes = gradients(model, term, x, **how), difference(model, term, x, **how)
    # h^2 = 1e-10 and rounding over h. The adjoint is the derivative of the flow and not of the
    # numbers: 64 steps of order 4 leave 1e-6. Where steps adapt, they are constants to the gradient
    # and not to the difference, which leaves the tolerance over h, 1e-5.
    tolerance = (1e-6 if gradient == "adjoint" else 1e-7) if options is FIXED else 2e-5
    for i, (by, slope) in enumerate(zip(found, slopes, strict=True)):
        along = float((by * tensor(*by.shape, seed=20 + i)).sum())
        assert along == pytest.approx(float(slope), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", terms(Bent()))
def test_gradients_agree(name: str) -> None:
    model, x = Bent(), tensor(4, 3)
    term = terms(model)[name]
    fine, error = {"method": "dopri5", "steps": 60}, 1e-6  # of order 5
    if name == "data":  # where a fixed grid in t takes its last steps over all of the clock
        fine, error = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6}, 1e-4
    reference = gradients(model, term, x, gradient="direct", **fine)
    for gradient, backend in BACKENDS[1:]:
        found = gradients(model, term, x, gradient=gradient, backend=backend, **fine)
        for a, b in zip(found, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=error, atol=error)


def test_checkpointing_changes_no_bit() -> None:
    model, x = Bent(), tensor(4, 3)
    for options in (FIXED, ADAPTIVE, {"method": "dopri5"}):
        plain, saved = (
            gradients(model, interp.ODE(model), x, gradient=g, **options)
            for g in ("direct", "checkpointed")
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True))


def test_checkpointed_noise_is_the_same_noise() -> None:
    model, x = Bent(), tensor(4, 3)
    found = []
    for gradient in ("direct", "checkpointed"):
        x = x.detach().requires_grad_()
        term = interp.SDE(model, lambda t, x: 0.3 + x.square() / 10)
        sol = interp.solve(term, x, method="euler_maruyama", steps=10, seed=5, gradient=gradient)
        found.append(torch.autograd.grad(sol.x.sum(), (x, model.first)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "method", [m.name for m in interp.methods("ode") if m.tableau and not m.implicit]
)
def test_a_reversible_run_has_the_order_of_its_method(method: str) -> None:
    order, problem = find(method).order, PROBLEMS["logistic"]
    few, many = (10, 40) if order < 6 else (3, 6)
    errors = [problem.error(method, n, gradient="reversible") for n in (few, many)]
    observed = math.log(errors[0] / errors[1]) / math.log(many / few)
    # The next term of the error is a few tenths of the leading one at these steps.
    assert order - 0.3 <= observed <= order + 0.5


def test_a_reversible_run_comes_back_to_its_start() -> None:
    # What a backward pass retraces, seen by the field: forward and back through the same states.
    seen: list[Tensor] = []
    weight = torch.ones((), dtype=F64, requires_grad=True)

    def field(t: Tensor, x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return torch.sin(3 * x + t) * weight

    x = tensor(5).requires_grad_()
    sol = interp.solve(field, x, method="midpoint", steps=50, gradient="reversible")
    there = seen[1:]  # the first evaluation looks for leaves
    seen.clear()
    sol.x.sum().backward()
    assert len(seen) == len(there) == 200
    # Going back meets the increments in the other order, two stages each.
    back = [s for i in range(0, len(seen), 2) for s in (seen[-i - 2], seen[-i - 1])]
    # Rounding of 1e-16 a step, which grows with the flow by exp(3) and by c^-50.
    assert max(float((a - b).abs().max()) for a, b in zip(there, back, strict=True)) < 1e-12


class Live(TorchDispatchMode):
    """The bytes of all memory that operations have made and that is still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self.known:
                memory = leaf.untyped_storage()
                self.known.add(memory._cdata)
                self.alive += memory.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(memory, self.freed, memory._cdata, memory.nbytes())
        return result

    def freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def held(gradient: str, backend: str, steps: int) -> float:
    """The peak of a solve and its backward pass, in states."""
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8)).double()
    x = tensor(2048, 8).requires_grad_()
    gc.collect()
    with Live() as live:
        sol = interp.solve(
            lambda t, x: model(x), x, method="rk4", steps=steps, gradient=gradient, backend=backend
        )
        sol.x.square().sum().backward()
    return live.peak / (8 * x.numel())


@pytest.mark.parametrize(
    # In states of (2048, 8); an evaluation of this network makes 17 and keeps 9 for its backward.
    # Each: what is there whatever the steps are, at most, and what a step adds, at most.
    ("gradient", "backend", "always", "each_step"),
    [
        ("direct", "torch", 24, 36.5), ("checkpointed", "torch", 32, 4.5),
        ("adjoint", "torch", 53, 0), ("adjoint", "rust", 40, 0), ("reversible", "torch", 72, 0),
    ],
)  # fmt: skip
def test_what_is_held_alive(gradient: str, backend: str, always: float, each_step: float) -> None:
    few, many = (held(gradient, backend, steps) for steps in (5, 15))
    assert (many - few) / 10 <= each_step
    assert few - (many - few) / 2 <= always
    # The bounds are no looser than a tenth and a few states.
    assert (many - few) / 10 >= 0.9 * each_step - 0.5


def test_a_plain_run_records_nothing_and_says_so() -> None:
    model, x = Bent(), tensor(4, 3)
    sol = interp.solve(interp.ODE(model), x, **FIXED)
    assert (sol.stats.backend, sol.stats.gradient, sol.x.requires_grad) == ("rust", None, False)
    half = interp.solve(lambda t, x: -x * model.last.sum().to(x), x.bfloat16(), **FIXED)
    assert (half.stats.backend, half.stats.gradient, half.x.requires_grad) == ("torch", None, False)
    for options in ({"gradient": "direct"}, {"backend": "torch"}, {"gradient": "adjoint"}):
        sol = interp.solve(interp.ODE(model), x, **FIXED, **options)
        assert sol.x.requires_grad
        assert sol.stats.gradient == options.get("gradient", "direct")
        with torch.no_grad():
            sol = interp.solve(interp.ODE(model), x, **FIXED, **options)
        assert not sol.x.requires_grad
        assert sol.stats.gradient is None


def test_leaves_that_the_field_takes_from_elsewhere_are_found() -> None:
    scale = torch.tensor(0.5, dtype=F64, requires_grad=True)
    doubled = 2 * scale  # not a leaf itself
    x = tensor(3, 2)
    found = []
    for gradient in GRADIENTS:
        sol = interp.solve(
            lambda t, x, push: -doubled * x + push, x, method="rk4", steps=100, gradient=gradient,
            cond={"push": scale},
        )  # fmt: skip
        found.append(torch.autograd.grad(sol.x.sum(), scale, retain_graph=True)[0])
    for by in found[1:]:
        torch.testing.assert_close(by, found[0], rtol=1e-8, atol=1e-8)  # 100 steps of order 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gradient": "ajoint"}, UnknownName, "adjoint"),
        ({"gradient": "reversible", "save_at": [0.51, 1.0]}, OptionError, "between two steps"),
        ({"gradient": "adjoint", "save_at": [0.51, 1.0]}, OptionError, "between two steps"),
        ({"gradient": "direct", "backend": "rust"}, Unsupported, 'gradient="adjoint"'),
        ({"gradient": "reversible", "backend": "rust"}, Unsupported, 'backend="torch"'),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        interp.solve(lambda t, x: -x, tensor(2, 2), **(FIXED | options))


@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint", "reversible"])
def test_transforms_are_told_of_direct(gradient: str) -> None:
    def run(x: Tensor) -> Tensor:
        return interp.solve(lambda t, x: -x, x, **FIXED, gradient=gradient).x.sum()

    with pytest.raises(Unsupported, match='gradient="direct"'):
        torch.func.grad(run)(tensor(2, 2))


def test_methods_without_a_tableau_are_told_of_checkpointing() -> None:
    term = interp.SDE(lambda t, x: -x, 1.0)
    with pytest.raises(Unsupported, match="checkpointed"):
        interp.solve(term, tensor(2, 2), method="euler_maruyama", steps=4, gradient="adjoint")
    with pytest.raises(Unsupported, match="explicit"):
        interp.solve(lambda t, x: -x, tensor(2, 2), method="kvaerno3", gradient="reversible")


@pytest.mark.parametrize("gradient", ["adjoint", "reversible"])
@pytest.mark.parametrize("options", [FIXED, {"method": "dopri5"}], ids=["fixed", "adaptive"])
def test_a_run_that_fails_says_so(gradient: str, options: dict[str, Any]) -> None:
    def burst(t: Tensor, x: Tensor) -> Tensor:
        return torch.where(t > 0.6, torch.nan, -x)

    with pytest.raises(SolveError) as caught:
        interp.solve(burst, tensor(2, 2), gradient=gradient, **options)
    assert 0 < caught.value.time <= 0.6
    x = tensor(2, 2).requires_grad_()
    sol = interp.solve(
        burst, x, gradient=gradient, on_failure="partial", save_at=[0.25, 0.75], **options
    )
    assert sol.stats.status == "non_finite"
    assert len(sol.xs) == 1
    # e^-t at the last good state, by steps of 1 / 8 of order 4 or the tolerance 1e-5.
    decay = torch.exp(torch.tensor(-caught.value.time, dtype=F64))
    torch.testing.assert_close(sol.x.detach(), x.detach() * decay, rtol=1e-4, atol=0)


def test_an_adjoint_that_cannot_go_back_names_the_others() -> None:
    came: list[Callable[[], None]] = []

    def field(t: Tensor, x: Tensor) -> Tensor:
        return -x if not came else x * torch.nan

    x = tensor(2).requires_grad_()
    sol = interp.solve(field, x, gradient="adjoint")
    came.append(lambda: None)
    with pytest.raises(SolveError, match="reversible"):
        sol.x.sum().backward()
