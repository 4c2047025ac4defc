"""Bad input to solve: one sentence of what is wrong, with the value, and one of what to do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import schedules
from interp.errors import (
    InterpError,
    OptionError,
    TimeError,
    UndeterminedView,
    UnknownName,
    Unsupported,
)

PATH = schedules.linear()
X = torch.ones(3, 2)
Call = dict[str, Any]


def field(t: Tensor, x: Tensor) -> Tensor:
    return -x


def flow(**options: Any) -> interp.solvers.Solution:
    return interp.solve(field, **{"x": X, **options})


def noisy(**options: Any) -> interp.solvers.Solution:
    term = interp.SDE(field, 1.0)
    return interp.solve(term, **{"x": X, "method": "euler_maruyama", "steps": 4, **options})


def path_flow(view: str = "velocity", **options: Any) -> interp.solvers.Solution:
    return interp.solve(PATH.ode(field, view=view), **{"x": X, **options})


# The call, the class of the error, what is wrong with the value, and what to do.
REFUSED: list[tuple[Callable[..., object], Call, type[InterpError], str, str]] = [
    # methods and their options
    (flow, {"method": "dopri"}, UnknownName, "method called 'dopri'", "mean dopri5"),
    (flow, {"method": "rk5"}, UnknownName, "method called 'rk5'", "mean .*rk4"),
    (flow, {"method": 4}, UnknownName, "method called 4", "mean rk4"),
    (flow, {"max_step": 3}, UnknownName, "option of dopri5 called 'max_step'", "mean max_steps"),
    (flow, {"method": "heun", "steps": 2, "max_steps": 3}, UnknownName, "option of heun", "Known"),
    (flow, {"seeds": 3}, UnknownName, "option of dopri5 called 'seeds'", "Known"),
    (flow, {"on_failure": "partail"}, UnknownName, "'partail'", "mean partial"),
    (flow, {"max_steps": 0}, OptionError, "max_steps=0", "1 or more"),
    (flow, {"max_steps": 2.5}, OptionError, r"max_steps=2\.5", "integer"),
    (flow, {"first_step": -0.1}, OptionError, r"first_step=-0\.1", "Give"),
    (flow, {"first_step": 0.0}, OptionError, r"first_step=0\.0", "Give"),
    (flow, {"first_step": math.nan}, OptionError, "first_step=nan", "Give"),
    (flow, {"method": "euler_maruyama", "steps": 2}, OptionError, "integrates SDEs", "dopri5"),
    (noisy, {"method": "heun"}, OptionError, "integrates ODEs", "euler_maruyama"),
    # steps and grids
    (flow, {"method": "euler"}, OptionError, "does not choose its own steps", "steps=N or a grid"),
    (noisy, {"steps": None}, OptionError, "does not choose its own steps", "steps=N"),
    (flow, {"steps": 0}, OptionError, "steps=0", "from 1 to"),
    (flow, {"steps": -3}, OptionError, "steps=-3", "from 1 to"),
    (flow, {"steps": 10**12}, OptionError, "steps=1000000000000", "from 1 to"),
    (flow, {"steps": 2.0}, OptionError, r"steps=2\.0", "integer"),
    (flow, {"steps": True}, OptionError, "steps=True", "integer"),
    (flow, {"steps": 2, "grid": [0.0, 1.0]}, OptionError, "contradict", "one of the two"),
    (flow, {"grid": "unifrom", "steps": 3}, UnknownName, "grid called 'unifrom'", "mean uniform"),
    (flow, {"grid": "uniform"}, OptionError, "how many steps", "steps=N"),
    (flow, {"grid": [0.0, 0.5, 0.5, 1.0]}, OptionError, r"grid\[1\] = 0\.5.*grid\[2\] = 0\.5", "mono"),
    (flow, {"grid": [0.0, 0.7, 0.5, 1.0]}, OptionError, r"grid\[1\] = 0\.7", "strictly monotone"),
    (flow, {"grid": [1.0, 0.5, 0.0]}, OptionError, "grid is from 1.* to 0", "t= with the grid's"),
    (flow, {"grid": [0.0, 0.5]}, OptionError, r"from 0.* to 0\.5", "with these ends"),
    (flow, {"grid": [0.0, 1.5, 1.0]}, OptionError, r"grid\[1\] = 1\.5", "strictly monotone"),
    (flow, {"grid": [0.0]}, OptionError, "grid is from 0.* to 0", "ends"),
    (flow, {"grid": []}, OptionError, "grid is empty", "ends"),
    (flow, {"grid": [0.0, math.nan, 1.0]}, TimeError, "grid holds nan", "finite times"),
    (flow, {"grid": 5}, OptionError, "grid=5", "list or a tensor"),
    (flow, {"grid": ["a", "b"]}, OptionError, "grid holds something", "Give times"),
    (
        flow, {"grid": torch.linspace(0.1, 0.7, 3), "t": (0.1, 0.7)}, OptionError,
        r"0\.10000000149", "Give a grid with",
    ),
    # the interval and output times
    (flow, {"t": (0.5, 0.5)}, TimeError, "starts and ends at t = 0.5", "two different times"),
    (flow, {"t": (0.0, math.inf)}, TimeError, "t holds inf", "finite times"),
    (flow, {"t": (0.0, math.nan)}, TimeError, "t holds nan", "finite times"),
    (flow, {"t": (0.0, 0.5, 1.0)}, TimeError, "t has 3 entries", "two ends"),
    (flow, {"t": 1.0}, OptionError, r"t=1\.0", "Give"),
    (path_flow, {"t": (0.0, 1.5)}, TimeError, r"t = 1\.5 is outside \[0, 1\]", r"inside \[0, 1\]"),
    (path_flow, {"t": (-0.1, 1.0)}, TimeError, r"t = -0\.1 is outside", r"inside \[0, 1\]"),
    (path_flow, {"t": (1.0, -1e-9)}, TimeError, r"t = -1e-09 is outside", r"inside \[0, 1\]"),
    (path_flow, {"view": "noise"}, TimeError, "noise says nothing of the data at t = 0", r"0\.001"),
    (path_flow, {"view": "data", "t": (1.0, 0.0)}, TimeError, "nothing of the noise", r"0\.999"),
    (flow, {"save_at": [0.5, 1.5]}, TimeError, r"save_at holds t = 1\.5", "inside it"),
    (flow, {"save_at": [0.5, 0.5]}, OptionError, r"save_at\[0\] = 0\.5", "strictly monotone"),
    (flow, {"save_at": [0.7, 0.5]}, OptionError, r"save_at\[0\] = 0\.7", "strictly monotone"),
    (flow, {"save_at": [0.2, 0.7], "t": (1.0, 0.0)}, OptionError, "from 1 towards 0", "monotone"),
    (flow, {"save_at": 0.5}, OptionError, r"save_at=0\.5", "list or a tensor"),
    (flow, {"save_at": [math.nan]}, TimeError, "save_at holds nan", "finite"),
    (noisy, {"save_at": [0.3]}, OptionError, r"t = 0\.3, between two steps", "times of the grid"),
    # tolerances
    (flow, {"rtol": -1e-5}, OptionError, "rtol=-1e-05", "0 or more"),
    (flow, {"atol": -1.0}, OptionError, r"atol=-1\.0", "0 or more"),
    (flow, {"rtol": math.nan}, OptionError, "rtol=nan", "Give"),
    (flow, {"atol": math.inf}, OptionError, "atol=inf", "Give"),
    (flow, {"rtol": "small"}, OptionError, "rtol='small'", "Give"),
    (flow, {"rtol": 0.0, "atol": 0.0}, OptionError, "both 0", "Raise one"),
    # the state
    (flow, {"x": torch.ones(2, dtype=torch.long)}, OptionError, r"torch\.int64", r"x\.float\(\)"),
    (flow, {"x": torch.ones(2).bool()}, OptionError, r"torch\.bool", r"x\.float\(\)"),
    (flow, {"x": torch.ones(2, dtype=torch.complex64)}, OptionError, "complex64", "floating"),
    (flow, {"x": [1.0, 2.0]}, OptionError, "x is a list", r"torch\.as_tensor\(x\)"),
    (flow, {"x": None}, OptionError, "x is a NoneType", "as_tensor"),
    (
        flow, {"x": torch.tensor([[1.0, 1.0], [math.nan, 1.0], [1.0, math.inf]])}, OptionError,
        r"NaN or infinite in rows \[1, 2\]", "finite state",
    ),
    (flow, {"x": torch.tensor(math.nan)}, OptionError, "NaN or infinite", "finite state"),
    # More memory than any machine has, were it made.
    (flow, {"x": torch.ones(1, 1).expand(2**50, 2)}, OptionError, "2251799813685248 elements", "rows"),
    (flow, {"x": torch.ones(1, 1).expand(2**31, 1)}, OptionError, "2147483648 elements", "rows"),
    (flow, {"x": torch.ones(2, 2).to_sparse()}, OptionError, "layout", r"to_dense\(\)"),
    # backends
    (flow, {"backend": "rusty"}, UnknownName, "backend called 'rusty'", "mean rust"),
    (flow, {"backend": "jax"}, UnknownName, "backend called 'jax'", "Known: auto, rust, torch"),
    (
        flow, {"backend": "rust", "x": X.half(), "steps": 2}, Unsupported,
        r"torch\.float16 on cpu", 'backend="torch"',
    ),
    (flow, {"x": X.to("meta")}, Unsupported, "the meta device has no numbers", "steps=N"),
    (flow, {"backend": "rust", "x": X.to("meta")}, Unsupported, "on meta", 'backend="torch"'),
    (
        flow, {"backend": "rust", "x": X.clone().requires_grad_()}, Unsupported,
        "differentiated", 'backend="torch"',
    ),
    (
        flow, {"backend": "torchdiffeq", "method": "rk4", "steps": 3}, Unsupported,
        "no method with rk4's tableau", "rk38",
    ),
    (
        flow, {"backend": "torchdiffeq", "method": "dopri5", "steps": 3}, Unsupported,
        "no fixed steps with dopri5", 'backend="rust"',
    ),
    (noisy, {"backend": "torchdiffeq"}, Unsupported, "no method", 'backend="rust"'),
    # what goes to the model, and back
    (flow, {"cond": 3}, OptionError, "cond", "Give"),
    (flow, {"cond": ["label"]}, OptionError, "cond", "Give"),
    (flow, {"callback": 3}, OptionError, "callback", "Give"),
    (noisy, {"seed": -1}, OptionError, "seed=-1", "Give"),
    (noisy, {"first_row": -1}, OptionError, "first_row=-1", "Give"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "options", "kind", "wrong", "remedy"), REFUSED,
    ids=[f"{call.__name__} {options}"[:60] for call, options, *_ in REFUSED],
)  # fmt: skip
def test_refused(
    call: Callable[..., object], options: Call, kind: type[InterpError], wrong: str, remedy: str
) -> None:
    with pytest.raises(kind, match=f"(?s){wrong}.*{remedy}") as caught:
        call(**options)
    message = str(caught.value)
    assert message.endswith((".", ".)", "?")), message
    assert len(message) < 400, message


# Terms

MODEL: dict[str, tuple[Callable[[], object], type[InterpError], str, str]] = {
    "a view": (lambda: PATH.ode(field, view="velocty"), UnknownName, "'velocty'", "mean velocity"),
    "a pair": (
        lambda: PATH.sde(field, view=("velocity", "data"), diffusion=1.0), UnknownName,
        "velocity.*data", "mean|Known",
    ),
    "a time": (lambda: PATH.ode(field, time="sigmas"), UnknownName, "'sigmas'", "mean sigma"),
    "an index": (
        lambda: PATH.ode(field, time=("index", 0)), UnknownName, r"\('index', 0\)", "index.*n",
    ),
    "no model": (lambda: PATH.ode(3), OptionError, "model is a int", "Give model"),  # type: ignore[arg-type]
    "no field": (lambda: interp.ODE(3.0), OptionError, "field is a float", "Give field"),  # type: ignore[arg-type]
    "no drift": (lambda: interp.SDE(3.0, 1.0), OptionError, "drift is a float", "Give drift"),  # type: ignore[arg-type]
    "no score": (
        lambda: PATH.sde(field, diffusion=1.0, score=3), OptionError, "score is a int", "Give",  # type: ignore[arg-type]
    ),
    "a name for a diffusion": (
        lambda: interp.SDE(field, "reverse"), InterpError, "'reverse'", "Give|Known",  # type: ignore[arg-type]
    ),
    "a negative diffusion": (lambda: interp.SDE(field, -1.0), OptionError, r"-1\.0", "0 or more"),
    "a calculus": (
        lambda: interp.SDE(field, 1.0, calculus="stratonovitch"), UnknownName, "'stratonovitch'",
        "mean stratonovich",
    ),
    "another name": (
        lambda: PATH.sde(field, diffusion="revers"), UnknownName, "'revers'", "mean reverse",
    ),
    "two scores": (
        lambda: PATH.sde(field, view="data", diffusion=1.0, score=field), OptionError,
        "contradict", 'view="velocity"',
    ),
    "no term": (lambda: interp.solve(3, X), OptionError, "a int cannot be", "Give path.ode"),  # type: ignore[arg-type]
    "not even that": (lambda: interp.solve(None, X), OptionError, "a NoneType", "Give path.ode"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("name", MODEL)
def test_terms_that_make_no_sense(name: str) -> None:
    make, kind, wrong, remedy = MODEL[name]
    with pytest.raises(kind, match=f"(?s){wrong}.*{remedy}"):
        make()


def test_a_path_without_a_gaussian_base_tells_no_score() -> None:
    bridge = interp.Interpolant(
        lambda t: 1 - t, lambda t: t, lambda t: (t * (1 - t)).sqrt(), gaussian_base=False
    )
    for view in ("score", "noise", "data", "base"):
        with pytest.raises(UndeterminedView, match='base is not Gaussian.*view="velocity"'):
            bridge.ode(field, view=view)
    with pytest.raises(UndeterminedView, match="score=a model of it"):
        bridge.sde(field, diffusion=1.0)
    law = interp.exact.Gaussian(0.0, 1.0)
    v = law.velocity(bridge, base=law)
    sol = interp.solve(bridge.ode(v), torch.zeros(2, 1), (0.1, 0.9), method="heun", steps=4)
    assert sol.x.isfinite().all()


def test_by_hand_any_interval_will_do() -> None:
    for ends in ((-3.0, 5.0), (2.0, -1.5), (10.0, 10.5)):
        sol = interp.solve(field, X.double(), ends)
        truth = X.double() * math.exp(ends[0] - ends[1])
        # A local error of atol = 1e-5, over a state that has shrunk to e^-8 = 3e-4.
        assert float(((sol.x - truth) / truth).abs().max()) < 0.1
        noise = interp.solve(interp.SDE(field, 0.0), X, ends, "euler_maruyama", steps=4)
        assert noise.x.isfinite().all()


def test_numbers_of_other_types_are_numbers() -> None:
    import numpy as np

    half: Any = np.float32(0.5)
    counts: Call = {
        "steps": np.int64(3),
        "seed": np.int32(1),
        "first_row": np.uint8(0),
        "depth": np.int64(8),
    }
    sol = interp.solve(interp.SDE(field, half), X, (half, 1), "euler_maruyama", **counts)
    assert (sol.stats.steps, sol.stats.depth, sol.stats.seed) == (3, 8, 1)
    tolerances: Call = {
        "rtol": np.float32(1e-4),
        "atol": np.float64(1e-4),
        "max_steps": np.int64(99),
    }
    assert interp.solve(field, X, **tolerances).stats.status == "done"
    times: Call = {"t": torch.tensor([0.0, 1.0]), "grid": torch.linspace(0, 1, 4)}
    assert interp.solve(field, X, method="euler", **times).stats.steps == 3


def test_a_tolerance_below_rounding_warns_and_runs() -> None:
    with pytest.warns(UserWarning, match=r"rtol=1e-12 and atol=1e-12 .*float32.*float64"):
        interp.solve(field, X, rtol=1e-12, atol=1e-12, max_steps=100, on_failure="partial")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interp.solve(field, X, rtol=1e-12, atol=1e-6)
        interp.solve(field, X.double(), rtol=1e-12, atol=1e-12)
        interp.solve(field, X, rtol=1e-12, atol=1e-12, method="rk4", steps=3)  # no steps adapt


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_an_eps_written_for_single_numbers(backend: str) -> None:
    law = interp.exact.Gaussian(0.0, 1.0)
    for eps in (
        lambda t: 0.5 if t < 0.5 else 0.1, lambda t: math.sqrt(1 - t), lambda t: None,
        lambda t: torch.ones(7, dtype=torch.float64),
    ):  # fmt: skip

        def run(eps: Any = eps) -> None:
            term = PATH.sde(law.data(PATH), view="data", diffusion=eps)
            interp.solve(term, torch.ones(3, 1), method="euler_maruyama", steps=4, backend=backend)

        with pytest.raises(InterpError, match=r"t.*(elementwise|Return|Write)"):
            run()


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_a_pair_or_score_that_is_none(backend: str) -> None:
    wrong: list[Callable[..., Any]] = [
        lambda t, x: x, lambda t, x: None, lambda t, x: (x, x[:1]), lambda t, x: (x, None),
        lambda t, x: (x, x, x), lambda t, x: (x.double(), x),
    ]  # fmt: skip
    options: Call = {"method": "euler_maruyama", "steps": 4, "backend": backend}
    for model in wrong:
        with pytest.raises(InterpError, match="Return|Give"):
            interp.solve(PATH.sde(model, view=("velocity", "score"), diffusion=1.0), X, **options)
    scores: list[Any] = [lambda t, x: None, lambda t, x: x[:1], lambda t, x: x.double()]
    for score in scores:
        with pytest.raises(InterpError, match="score.*Return"):
            interp.solve(PATH.sde(field, diffusion=1.0, score=score), X, **options)
