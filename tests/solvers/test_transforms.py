"""Fixed-grid solves under torch.func and torch.compile."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import FieldError, SolveError, Unsupported
from interp.solvers.catalogue import find

F64 = torch.float64
PATH = schedules.variance_preserving()


def bent(t: Tensor, x: Tensor) -> Tensor:
    return torch.sin(2 * x + t) * torch.cos(x.sum(-1, keepdim=True))


TERMS = {
    "by hand": interp.ODE(bent),
    "velocity": PATH.ode(bent),
    "noise": PATH.ode(bent, view="noise"),
    "data": PATH.ode(bent, view="data"),
}


def state(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(3))


def ended(term: str, method: str = "rk4", save: float = 0.61) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        sol = interp.solve(
            TERMS[term], x, (0.5, 1.0), method, steps=4, save_at=[save, 1.0], backend="torch"
        )
        return sol.xs.sum(0) + sol.x

    return run


@pytest.mark.parametrize("term", TERMS)
def test_vmap_solves_each_row(term: str) -> None:
    x, run = state(3, 2, 2), ended(term)
    rows = torch.stack([run(row) for row in x])
    # One operation over rows or over all of them may round differently, over some 100 of them.
    torch.testing.assert_close(torch.func.vmap(run)(x), rows, rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("term", TERMS)
def test_every_derivative_is_the_same(term: str) -> None:
    x, run = state(2, 2), ended(term, "heun")

    def value(x: Tensor) -> Tensor:
        return run(x).square().sum()

    leaf = x.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(value(leaf), leaf)
    forward, backward = torch.func.jacfwd(run)(x), torch.func.jacrev(run)(x)
    rows = torch.func.vmap(torch.func.grad(lambda row: value(row[None])))(x)
    for found in (
        torch.func.grad(value)(x), rows,
        2 * torch.einsum("abij,ab->ij", forward, run(x)),
        2 * torch.einsum("abij,ab->ij", backward, run(x)),
    ):  # fmt: skip
        # The same products in another order.
        torch.testing.assert_close(found, by_autograd, rtol=1e-11, atol=1e-11)
    h = 1e-5
    step = (torch.func.grad(value)(x + h) - torch.func.grad(value)(x - h)) / (2 * h)
    second = torch.func.jvp(torch.func.grad(value), (x,), (torch.ones_like(x),))[1]
    # A central difference: h^2 times the fourth derivative, and rounding of 1e-16 / h.
    torch.testing.assert_close(second, step, rtol=1e-7, atol=1e-7)


def sampled(method: str) -> Callable[[Tensor], Tensor]:
    """The end of a short run that may draw noise, always the same."""
    by_hand = {"heun_stratonovich": "stratonovich", "reversible_heun": "stratonovich"}
    sde = interp.SDE(lambda t, x: -x, lambda t, x: 0.3 * x, by_hand.get(method, "ito"))
    term = sde if find(method).kind == "sde" else PATH.ode(bent, view="data")

    def run(x: Tensor) -> Tensor:
        return interp.solve(term, x, (0.5, 0.9), method, "torch", steps=3, seed=0).x

    return run


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("method", [m.name for k in ("path", "sde") for m in interp.methods(k)])
def test_samplers_under_transforms(method: str) -> None:
    """What a run is made of, its coefficients and its noise, is outside of every transform."""
    x, run = state(2, 2), sampled(method)

    def value(x: Tensor) -> Tensor:
        return run(x).square().sum()

    at = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(value(at), at)
    torch.testing.assert_close(torch.func.grad(value)(x), plain, rtol=1e-12, atol=1e-12)
    _, along = torch.func.jvp(value, (x,), (x,))
    torch.testing.assert_close(along, (plain * x).sum(), rtol=1e-10, atol=1e-10)
    many = torch.func.vmap(torch.func.grad(value))(torch.stack([x, x]))
    torch.testing.assert_close(many, torch.stack([plain, plain]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("term", ["by hand", "velocity"])
def test_compile_takes_the_whole_solve_as_one_graph(term: str) -> None:
    torch.compiler.reset()
    graphs = []

    def seen(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(inputs)
        return graph

    run, x = ended(term, save=0.75), state(3, 2)
    compiled = torch.compile(run, backend=seen, fullgraph=term == "by hand")
    torch.testing.assert_close(compiled(x), run(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(compiled(2 * x), run(2 * x), rtol=0, atol=1e-14)
    assert len(graphs) == 1
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    by_compiled, by_hand = (
        torch.autograd.grad(f(leaf).square().sum(), leaf)[0]
        for f, leaf in zip((compiled, run), leaves, strict=True)
    )
    torch.testing.assert_close(by_compiled, by_hand, rtol=1e-13, atol=1e-13)
    torch.compiler.reset()


def test_an_adaptive_run_inside_vmap_is_refused_by_name() -> None:
    def run(x: Tensor) -> Tensor:
        return interp.solve(bent, x).x

    with pytest.raises(Unsupported, match=r"per_row=True"):
        torch.func.vmap(run)(state(3, 2))
    with pytest.raises(Unsupported, match=r"steps=N"):
        torch.func.vmap(torch.func.grad(lambda x: run(x).sum()))(state(3, 2))
    x = state(3, 2)
    jacobian = torch.func.vjp(run, x)[1](torch.ones_like(x))[0]  # no vmap: it adapts
    assert torch.isfinite(jacobian).all()


def test_failures_inside_vmap_are_named() -> None:
    def run(field: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: interp.solve(field, x, method="heun", steps=2).x

    with pytest.raises(SolveError, match="NaN"):
        torch.func.vmap(run(lambda t, x: x * math.nan))(state(3, 2))
    with pytest.raises(FieldError, match="shape"):
        torch.func.vmap(run(lambda t, x: x[:1]))(state(3, 2))
