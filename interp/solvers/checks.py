"""What `solve` was given, checked: out of it comes a `Request`, or an error that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..arguments import mapping, real, transforming
from ..errors import OptionError, UnknownName, Unsupported
from ..terms import Cond, Term
from . import chains, gradients, grids, rust_backend
from .catalogue import METHODS, Method
from .plan import Request
from .torch_backend.run import bad_rows, finite

BACKENDS = ("auto", "rust", "torch", "torchdiffeq")
_COMMON = ("on_failure", "denoise")
_MOST = 1 << 31
"""Elements of a state on the CPU: from here on its stages would take tens of gigabytes."""


def callable_field(term: object) -> Callable[..., Tensor]:
    if not callable(term):
        raise OptionError(
            f"a {type(term).__name__} cannot be integrated. Give path.ode(model), path.sde(model), "
            "interp.ODE(field), interp.SDE(drift, diffusion) or a function field(t, x)."
        )
    return term


def check_extras(cond: object, callback: object) -> None:
    if cond is not None and not isinstance(cond, Mapping):
        kind = type(cond).__name__
        raise OptionError(f'cond is a {kind}. Give a mapping of names to values, {{"label": y}}.')
    if callback is not None and not callable(callback):
        kind = type(callback).__name__
        raise OptionError(f"callback is a {kind}, not a function. Give callback(state).")


def requested(
    term: Term, x: Tensor, t: object, method: Method, backend: str, steps: int | None,
    grid: grids.Grid | None, rtol: float, atol: float, save_at: object, seed: int | None,
    first_row: int, per_row: bool, cond: Cond, gradient: str | None, options: Mapping[str, Any],
) -> Request:  # fmt: skip
    _check_kind(term, method)
    _check_state(x)
    _check_options(method, options)
    ends, times = grids.resolved(term, t, steps, grid)
    term.check(*ends)
    _check_tolerances(rtol, atol, x.dtype if times is None else None)
    if times is None and not method.adaptive:
        raise OptionError(f"{method.name} does not choose its own steps. Give steps=N or a grid.")
    if times is None and mapping():
        raise Unsupported(
            "adaptive steps follow from the state, which torch.func.vmap lets nobody ask. Give steps=N "
            "or a grid; or solve the whole batch without vmap, each row at its own step: per_row=True."
        )
    asked = saves = [] if save_at is None else grids.save_times(save_at, ends)
    if saves and times is not None:
        saves = grids.snapped(asked, times, ends, grids.rounding_of(save_at))
    gradient = _gradient(gradient, method, x, backend)
    if per_row and gradient in ("adjoint", "reversible"):
        raise Unsupported(
            f"{gradient} gradients go back over the steps of all rows together, and per_row=True gives "
            'each its own. Use gradient="direct" or "checkpointed".'
        )
    if backend == "auto" and method.kind == "path" and term.path is not None and term.path.element:
        backend = "torch"  # whose coefficients may be tensors
    name = _backend(backend, method, x, times is not None, gradient, options)
    if times is None and x.is_meta:
        raise Unsupported(
            "adaptive steps follow from the state, and a tensor on the meta device has no numbers. Give "
            "steps=N or a grid."
        )
    if per_row:
        _check_rows(method, name, x, gradient)
    return Request(
        method, name, ends, times, float(rtol), float(atol), saves, asked, seed, first_row, cond,
        options, gradient, per_row, save_at is None,
    )  # fmt: skip


def check_chain(
    method: Method, x: Tensor, backend: str, times: Mapping[str, object], options: Mapping[str, Any]
) -> None:
    if method.kind != "chain":
        raise OptionError(
            f"{method.name} integrates {method.kind.upper()}s and this term is an Energy. Use one of "
            f"{', '.join(chains.CHAINS)}."
        )
    given = [name for name, value in times.items() if value is not None]
    if given:
        raise OptionError(
            f"a chain has no time, and {given[0]} was given. Give steps=N, step_size=h and, to see its "
            "states on the way, save_every=k."
        )
    if backend not in BACKENDS:
        raise UnknownName.of("backend", backend, BACKENDS)
    if backend not in ("auto", *method.own):
        raise Unsupported(f'a chain runs on rust or torch, not on {backend}. Use backend="auto".')
    _check_state(x)
    _check_options(method, options)


def _check_kind(term: Term, method: Method) -> None:
    if method.kind == "chain":
        raise OptionError(
            f"{method.name} is a chain on an energy and this term is an {term.kind.upper()}. Give an "
            "interp.Energy, or another method."
        )
    if method.accepts(term):
        return
    if method.kind == "path" and term.path is None:
        raise OptionError(
            f"{method.name} works in the log-SNR of a path, and a term made by hand has none. Give "
            "path.ode(model), or use heun, rk4 or dopri5."
        )
    instead = {"ode": "dopri5", "map": "map"}.get(term.kind, "euler_maruyama")
    takes = {"path": "path.ode(model)", "map": "path.flow_map(model)"}.get(
        method.kind, f"{method.kind.upper()}s"
    )
    raise OptionError(
        f"{method.name} integrates {takes} and this term is an "
        f"{term.kind.upper()}. Use another method, e.g. method={instead!r}."
    )


def _check_state(x: object) -> None:
    if not isinstance(x, Tensor):
        raise OptionError(f"x is a {type(x).__name__}, not a tensor. Give torch.as_tensor(x).")
    if not x.is_floating_point():
        raise OptionError(f"x has dtype {x.dtype}. Give floating-point numbers, e.g. x.float().")
    if x.layout is not torch.strided:
        raise OptionError(f"x has the layout {x.layout}. Give x.to_dense().")
    if x.is_cpu and x.numel() >= _MOST:
        raise OptionError(
            f"x has {x.numel()} elements, and a run on the CPU takes fewer than 2^31. Solve some of its "
            "rows at a time: with first_row=i they draw the noise of the whole."
        )
    if x.is_meta or transforming():
        return
    known = rust_backend.finite(x)
    if not (finite(x) if known is None else known):
        raise OptionError(f"x is NaN or infinite in rows {bad_rows(x)[:8]}. Give a finite state.")


def _check_rows(method: Method, backend: str, x: Tensor, gradient: str | None) -> None:
    """Refuse rows with steps of their own where there are none, or no engine for them."""
    if not method.per_row:
        raise Unsupported(
            f"{method.name} steps all rows together. Give per_row=False, or one of "
            f"{', '.join(m.name for m in METHODS.values() if m.per_row)}."
        )
    if backend == "torchdiffeq":
        raise Unsupported('torchdiffeq steps all rows together. Use backend="rust" or "torch".')
    if gradient not in (None, "direct"):
        raise Unsupported(
            f"{gradient} gradients are those of rows that step together. Give per_row=False or "
            'gradient="direct".'
        )
    if x.ndim == 0:
        raise OptionError("x has no rows: it is 0-d. Give x of shape (rows, ...).")


def _check_tolerances(rtol: object, atol: object, dtype: torch.dtype | None) -> None:
    """Refuse what is no tolerance; warn of one below the rounding of ``dtype``, if steps adapt."""
    rtol, atol = real("rtol", rtol), real("atol", atol)
    if rtol == 0 and atol == 0:
        raise OptionError("rtol and atol are both 0, which no step can meet. Raise one of them.")
    if dtype is None:
        return
    rounding = torch.finfo(dtype).eps
    if rtol < rounding and atol < rounding:
        warnings.warn(
            f"rtol={rtol} and atol={atol} are below the rounding of {dtype}, {rounding:.1e}: steps "
            "may shrink without end. Use float64 or larger tolerances.",
            stacklevel=4,
        )


def _check_options(method: Method, options: Mapping[str, Any]) -> None:
    known = (*_COMMON, *method.options)
    for name in options:
        if name not in known:
            raise UnknownName.of(f"option of {method.name}", name, known)
    if options.get("on_failure", "raise") not in ("raise", "partial"):
        raise UnknownName.of("on_failure", options["on_failure"], ("raise", "partial"))
    if not isinstance(options.get("denoise", True), bool):
        raise OptionError(f"denoise={options['denoise']!r} is neither True nor False. Give one.")


def _gradient(name: str | None, method: Method, x: Tensor, backend: str) -> str | None:
    """How to differentiate the run, after a check that it can be."""
    if method.implicit:
        if name is not None or _differentiated(x):
            raise Unsupported(
                f"{method.name} solves for its stages and gives no gradients. Use an explicit method, or "
                "torch.no_grad()."
            )
        return None
    if name is None:
        asked = backend in ("torch", "torchdiffeq") and torch.is_grad_enabled()
        return "direct" if asked or _differentiated(x) else None
    if name not in gradients.GRADIENTS:
        raise UnknownName.of("gradient", name, gradients.GRADIENTS)
    own = name == "reversible" and method.reversible
    explicit = method.tableau is not None and not method.implicit
    if name in ("adjoint", "reversible") and not (explicit or own):
        such = "explicit Runge-Kutta methods"
        if name == "reversible":
            such += " and reversible_heun"
        raise Unsupported(
            f"{name} gradients are there for {such}, and {method.name} is none. "
            'Use gradient="checkpointed" or "direct".'
        )
    if name != "direct" and transforming():
        raise Unsupported(
            f"torch.func and torch.compile follow every operation themselves, which {name} gradients "
            'hide from them. Use gradient="direct".'
        )
    return name


def _backend(
    name: str, method: Method, x: Tensor, fixed: bool, gradient: str | None,
    options: Mapping[str, Any],
) -> str:  # fmt: skip
    """The backend to use, after a check that it can."""
    if name not in BACKENDS:
        raise UnknownName.of("backend", name, BACKENDS)
    native = rust_backend.takes(x)
    recorded = gradient not in (None, "adjoint")  # the adjoint's runs record nothing
    if name == "auto":
        return "rust" if native and not recorded and "rust" in method.backends else "torch"
    if name == "rust" and "rust" not in method.backends:
        raise Unsupported(
            f'{method.name} needs derivatives of the field, which torch has. Use backend="torch".'
        )
    if name == "rust" and (not native or recorded):
        why = (
            f"this run is to be differentiated ({gradient})"
            if native
            else f"x is {x.dtype} on {x.device}"
        )
        raise Unsupported(
            f"the rust backend runs float32 and float64 on the cpu and records no operations, and {why}. "
            'Use backend="torch" or "auto", or gradient="adjoint".'
        )
    if name == "torchdiffeq":
        if gradient in ("adjoint", "reversible"):
            raise Unsupported(
                f'{gradient} gradients are of interp\'s own backends. Leave out backend="torchdiffeq".'
            )
        if method.peer is None or name not in method.backends:
            why = (
                "is not installed" if method.peer else f"has no method with {method.name}'s tableau"
            )
            raise Unsupported(
                f'torchdiffeq {why}. Use backend="rust" or "torch" (its rk4 is our rk38, its heun2 '
                "our heun), or install interp[peers]."
            )
        if fixed and method.adaptive:
            raise Unsupported(
                f'torchdiffeq takes no fixed steps with {method.name}. Use backend="rust" or "torch".'
            )
        own = sorted({"controller", "norm"} & options.keys())
        if own:
            raise Unsupported(
                f"torchdiffeq has a controller and a norm of its own, and {own[0]} would not reach them. "
                'Use backend="rust" or "torch".'
            )
    return name


def _differentiated(x: Tensor) -> bool:
    """Whether something follows the derivative of x: autograd, forward mode, a torch.func transform."""
    if transforming():  # where even a plain x may meet transformed numbers in the field
        return True
    inside = forward_ad._current_level >= 0
    dual = inside and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
    return dual or (x.requires_grad and torch.is_grad_enabled())
