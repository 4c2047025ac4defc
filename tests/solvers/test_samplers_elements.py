"""Samplers on paths whose schedules differ between elements."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import OptionError, Unsupported

F64 = torch.float64
LAW = interp.exact.Gaussian([0.3, -0.2], [0.25, 0.09])
SAMPLERS = [m.name for m in interp.methods("path")]
ENDS = (0.2, 0.9)


def warped(power: float | Tensor) -> interp.Interpolant:
    """The trigonometric path at t^power, one power for all elements or one for each."""

    def angle(t: Tensor) -> Tensor:
        return math.pi / 2 * (t[..., None] if isinstance(power, Tensor) else t) ** power

    return interp.Interpolant(lambda t: angle(t).cos(), lambda t: angle(t).sin())


TWO = warped(torch.tensor([1.0, 1.4], dtype=F64))
TURN = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=F64)


def turned(path: interp.Interpolant) -> interp.Interpolant:
    """The path with its coefficients in a basis that is turned by an angle."""
    return path.in_basis(lambda x: x @ TURN.to(x).mT, lambda x: x @ TURN.to(x))


def start() -> Tensor:
    return interp.noise.normal((4, 2), seed=0, dtype=F64)


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("view", ["data", "noise"])
def test_equal_schedules_are_one_schedule(method: str, view: str) -> None:
    """To the rounding of some twenty sums; from 0 where the view can be asked there, with clean data."""
    begin = 0.0 if view == "data" else 0.01
    each, one = warped(torch.full((2,), 1.3, dtype=F64)), warped(1.3)
    ends = []
    for path in (each, one):
        term = path.ode(getattr(LAW, view)(path), view=view)
        ends.append(interp.solve(term, start(), (begin, 1.0), method, steps=9, seed=1).x)
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


# Of more answers the second-order error of deis and ipndm is small, and changes its sign.
ORDERS = [
    (m.name, m.order, options)
    for m in interp.methods("path")
    if not m.noisy
    for options in {
        "restart": [{"segments": []}],
        "deis": [{"order": 2}, {"order": 2, "variant": "rho"}],
        "ipndm": [{"order": 2}],
        "unipc": [{}, {"order": 3}, {"prediction": "noise"}],
    }.get(m.name, [{}])
]


@pytest.mark.parametrize(("method", "order", "options"), ORDERS)
@pytest.mark.parametrize("path", [TWO, turned(TWO)], ids=["elements", "basis"])
def test_observed_order(
    method: str, order: int, options: dict[str, object], path: interp.Interpolant
) -> None:
    """Against dopri5 at 1e-11, with bounds as for one schedule."""
    term = path.ode(LAW.data(path), view="data")
    x = start()
    true = interp.solve(term, x, ENDS, "dopri5", rtol=1e-11, atol=1e-12).x
    errors = [
        float((interp.solve(term, x, ENDS, method, steps=n, **options).x - true).abs().max())  # type: ignore[arg-type]
        for n in (60, 120)
    ]
    assert order - 0.3 < math.log2(errors[0] / errors[1]) < order + 1.4


def test_the_reverse_process_keeps_the_law_of_each_element() -> None:
    """Means and variances of 4000 rows, to five standard errors and the bias of 200 steps of order 1."""
    term = TWO.ode(LAW.data(TWO), view="data")
    x = interp.noise.normal((4000, 2), seed=3, dtype=F64)
    mean, variance = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.25, 0.09]).double()
    for method, options in (
        ("ddim", {"eta": 1.0}),
        ("dpm++2m_sde", {}),
        ("dpm++2s_sde", {}),
        ("seeds2", {}),
        ("edm_heun", {"s_churn": 20.0}),
    ):
        end = interp.solve(term, x, method=method, steps=200, seed=1, **options).x  # type: ignore[arg-type]
        assert ((end.mean(0) - mean).abs() < 5 * (variance / 4000).sqrt() + 0.01).all()
        assert ((end.var(0) / variance - 1).abs() < 5 * (2 / 4000) ** 0.5 + 0.02).all()


def test_what_has_no_meaning_between_elements_is_refused() -> None:
    term, x = TWO.ode(LAW.data(TWO), view="data"), start()
    with pytest.raises(Unsupported, match='backend="torch"'):
        interp.solve(term, x, method="ddim", steps=3, backend="rust")
    with pytest.raises(OptionError, match="log_rho"):
        interp.solve(term, x, method="deis", steps=3, variant="t")
    with pytest.raises(Unsupported, match="uniform"):
        interp.solve(term, x, method="ddim", steps=3, grid="karras")
    with pytest.raises(OptionError, match="no such elements"):
        interp.solve(term, torch.zeros(4, 3, dtype=F64), method="ddim", steps=3)
    assert interp.solve(term, x, method="ddim", steps=3).stats.backend == "torch"
    assert (
        interp.solve(
            schedules.linear().ode(LAW.data(schedules.linear()), view="data"),
            x,
            method="ddim",
            steps=3,
        ).stats.backend
        == "rust"
    )
