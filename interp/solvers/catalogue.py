"""The table of methods: what each can integrate, to which order, and where it runs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

from ..errors import UnknownName
from ..terms import PathMap, PathODE, PathSDE, Term
from . import edm, multistep, singlestep, tableaus
from .adams_bashforth import adams_bashforth
from .ancestral import ddim, ddpm
from .dop853 import DOP853
from .esdirk import KENCARP4, KVAERNO3
from .flow_map import flow_map
from .plan import Plan
from .recurrence import Sampler, semi_linear
from .reversible_heun import reversible_heun
from .runge_kutta import runge_kutta
from .stochastic import euler_maruyama, heun_stratonovich, milstein, srk
from .tableaus import Numbers, Tableau

if TYPE_CHECKING:
    from ..interpolant import Interpolant
    from .bias import BiasTable

KINDS = ("ode", "path", "sde", "map", "chain")

_NAMES_OF: dict[type, set[str]] = {
    PathODE: {"path.ode"},
    PathSDE: {"path.sde"},
    PathMap: {"path.flow_map"},
}

Scheme = Callable[[Any, Any, Any, Any], Plan]
"""scheme(term, x, request, observer): what a backend is to run for a term of the method's kind. The
observer is called in the caller's time and state."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: what `solve` calls it.
        kind: "ode" or "sde": of any; "path": a semi-linear sampler, of the terms of a path; "map": of
            the map of a path between two times; "chain": of an energy.
        order: of convergence (weak for an SDE); 0 where more steps bring nothing nearer.
        adaptive: whether it can choose its steps.
        terms: which terms it integrates.
        scheme: what plans its runs.
        tableau: its coefficients, where it is a Runge-Kutta method.
        peer: what torchdiffeq calls the same tableau, or None.
        options: names of its own options.
        per_row: whether each row may have its own steps.
        own: which of our own backends it runs on.
        reversible: whether its steps can be undone exactly, for gradients.
    """

    name: str
    kind: str
    order: int
    adaptive: bool
    terms: tuple[str, ...]
    scheme: Scheme
    tableau: Tableau | None = None
    peer: str | None = None
    options: tuple[str, ...] = ()
    per_row: bool = False
    own: tuple[str, ...] = ("rust", "torch")
    reversible: bool = False
    _numbers: Numbers | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        rounded = None if self.tableau is None else Numbers.of(self.tableau)
        object.__setattr__(self, "_numbers", rounded)

    def accepts(self, term: Term) -> bool:
        """Whether it integrates this term."""
        names = {term.kind.upper()} | _NAMES_OF.get(type(term), set())
        return not names.isdisjoint(self.terms)

    @property
    def noisy(self) -> bool:
        """Whether it draws noise unless an option of its own says otherwise."""
        return not {"SDE", "path.sde"}.isdisjoint(self.terms)

    @functools.cached_property
    def backends(self) -> tuple[str, ...]:
        """Where it runs here and now: a peer counts where it is installed."""
        own = tuple(name for name in self.own if name == "torch" or not self.implicit)
        return (*own, "torchdiffeq") if self.peer and _installed("torchdiffeq") else own

    @property
    def implicit(self) -> bool:
        """Whether its stages are solved for, with derivatives of the field: for stiff fields."""
        return self.tableau is not None and self.tableau.implicit

    @property
    def error_order(self) -> float:
        """The power of the step with which its local error estimate scales."""
        return self.tableau.error_order if self.tableau is not None else self.order

    @property
    def numbers(self) -> Numbers:
        """The tableau in floating point."""
        if self._numbers is None:
            raise UnknownName.of("tableau", self.name, METHODS)
        return self._numbers


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _runge_kutta(name: str, tableau: Tableau, peer: str | None = None) -> Method:
    adaptive = bool(tableau.b_hat)
    options = ("first_step", "max_steps", "controller", "norm") if adaptive else ()
    return Method(
        name, "ode", tableau.order, adaptive, ("ODE",), runge_kutta, tableau, peer, options,
        per_row=not tableau.implicit,
    )  # fmt: skip


def _sampler(name: str, order: int, sampler: Sampler, *options: str, noisy: bool = False) -> Method:
    terms = ("path.ode", "path.sde") if noisy else ("path.ode",)
    options = ("data_hook", *options)
    return Method(name, "path", order, False, terms, semi_linear(sampler), options=options)


def _chain(name: str, order: int, *options: str) -> Method:
    """A chain, whose run `interp.solvers.chains` makes."""
    common = ("step_size", "save_every")
    return Method(
        name,
        "chain",
        order,
        False,
        ("Energy",),
        _no_plan,
        options=(*common, *options),
    )


def _no_plan(term: Any, x: Any, request: Any, observer: Any) -> Plan:
    raise TypeError("a chain has no plan")


#: Options of a method that can choose its steps.
_STEPS = ("first_step", "max_steps", "controller")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _runge_kutta("euler", tableaus.EULER, "euler"),
        _runge_kutta("midpoint", tableaus.MIDPOINT, "midpoint"),
        _runge_kutta("heun", tableaus.HEUN, "heun2"),
        _runge_kutta("ralston", tableaus.RALSTON),
        _runge_kutta("ssprk3", tableaus.SSPRK3),
        _runge_kutta("rk4", tableaus.RK4),
        _runge_kutta("rk38", tableaus.RK38, "rk4"),
        _runge_kutta("bosh3", tableaus.BOSH3, "bosh3"),
        _runge_kutta("dopri5", tableaus.DOPRI5, "dopri5"),
        _runge_kutta("tsit5", tableaus.TSIT5),
        _runge_kutta("dop853", DOP853),
        *(Method(f"ab{p}", "ode", p, False, ("ODE",), adams_bashforth) for p in (2, 3, 4)),
        _runge_kutta("kvaerno3", KVAERNO3),
        _runge_kutta("kencarp4", KENCARP4),
        Method(
            "euler_maruyama", "sde", 1, False, ("SDE",), euler_maruyama, options=("span", "depth")
        ),
        _sampler("ddim", 1, ddim, "eta", "depth"),
        _sampler("ddpm", 1, ddpm, "variance", "depth", noisy=True),
        _sampler("dpm1", 1, singlestep.dpm_1),
        _sampler("dpm2", 2, singlestep.dpm_2),
        _sampler("dpm3", 3, singlestep.dpm_3),
        _sampler("dpm++2s", 2, singlestep.dpmpp_2s),
        _sampler("dpm++3s", 3, singlestep.dpmpp_3s),
        _sampler("dpm++2s_sde", 2, singlestep.dpmpp_2s_sde, "eta", "depth", noisy=True),
        _sampler("dpm++3s_sde", 2, singlestep.dpmpp_3s_sde, "eta", "depth", noisy=True),
        _sampler("seeds1", 1, singlestep.seeds_1, "eta", "depth", noisy=True),
        _sampler("seeds2", 2, singlestep.seeds_2, "eta", "depth", noisy=True),
        _sampler("seeds3", 2, singlestep.seeds_3, "eta", "depth", noisy=True),
        _sampler("dpm++2m", 2, multistep.dpmpp_2m, "variant", "last_order"),
        _sampler("dpm++3m", 3, multistep.dpmpp_3m, "published", "last_order", "lower_order_final"),
        _sampler("dpm++2m_sde", 2, multistep.dpmpp_2m_sde, "eta", "variant", "depth", noisy=True),
        _sampler(
            "dpm++3m_sde",
            2,
            multistep.dpmpp_3m_sde,
            "eta",
            "published",
            "lower_order_final",
            "depth",
            noisy=True,
        ),
        _sampler(
            "unipc",
            2,
            multistep.unipc,
            "order",
            "variant",
            "prediction",
            "last_order",
            "lower_order_final",
        ),
        _sampler("deis", 2, multistep.deis, "order", "variant", "last_order", "lower_order_final"),
        _sampler("ipndm", 2, multistep.ipndm, "order", "last_order"),
        _sampler("pndm", 2, multistep.pndm),
        _sampler("edm_heun", 2, edm.edm_heun, "s_churn", "s_min", "s_max", "s_noise", "depth"),
        _sampler("restart", 2, edm.restart, "segments", "depth"),
        _sampler("pc", 1, edm.predictor_corrector, "snr", "corrections", "depth", noisy=True),
        Method(
            "milstein",
            "sde",
            1,
            False,
            ("SDE",),
            milstein,
            options=("span", "depth", "derivative_free"),
        ),
        Method("srk", "sde", 2, True, ("SDE",), srk, options=(*_STEPS, "span", "depth")),
        Method(
            "heun_stratonovich",
            "sde",
            1,
            True,
            ("SDE",),
            heun_stratonovich,
            options=(*_STEPS, "span", "depth"),
        ),
        Method(
            "reversible_heun",
            "sde",
            1,
            False,
            ("SDE",),
            reversible_heun,
            options=("span", "depth"),
            reversible=True,
        ),
        Method("map", "map", 0, False, ("path.flow_map",), flow_map, options=("renoise",)),
        _chain("langevin", 1),
        _chain("annealed", 1, "levels"),
        _chain("underdamped", 2, "friction"),
        _chain("mala", 1, "adapt"),
        _chain("hmc", 2, "adapt", "leapfrog"),
    )
}


class MethodTable(tuple[Method, ...]):
    """Methods that print as a table."""

    def __str__(self) -> str:
        head = ("name", "kind", "order", "adaptive", "backends", "terms")
        rows = [head, *(self._cells(m) for m in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)

    @staticmethod
    def _cells(m: Method) -> tuple[str, ...]:
        adaptive = "yes" if m.adaptive else "no"
        backends, terms = ", ".join(m.backends), ", ".join(m.terms)
        return (m.name, m.kind, str(m.order), adaptive, backends, terms)

    __repr__ = __str__


@overload
def methods(kind: str | None = None, bias: Literal[False] = False) -> MethodTable: ...


@overload
def methods(
    kind: str | None = None, bias: Literal[True] = ..., *, steps: Sequence[int] = ...,
    mean: float = ..., variance: float = ..., path: Interpolant | None = ...,
) -> BiasTable: ...  # fmt: skip


def methods(
    kind: str | None = None, bias: bool = False, *, steps: Sequence[int] = (20, 50, 200),
    mean: float = 0.3, variance: float = 0.25, path: Interpolant | None = None,
) -> MethodTable | BiasTable:  # fmt: skip
    """The methods of `solve`, all or of one ``kind`` ("ode", "path", "sde", "map", "chain").

    With ``bias``, instead, the standard deviation that every stochastic sampler leaves on N(mean,
    variance) after so many ``steps`` on the ``path`` (linear where it is None), computed exactly.

    Raises:
        UnknownName: a kind that does not exist.
        OptionError: a path of whose bias there is no table.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownName.of("kind of method", kind, KINDS)
    some = {m.name: m for m in METHODS.values() if kind in (None, m.kind)}
    if bias:
        from .bias import bias as table

        return table(some, steps, mean, variance, path)
    return MethodTable(some.values())


def find(name: object) -> Method:
    """The method called ``name``.

    Raises:
        UnknownName: none is.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UnknownName.of("method", name, METHODS)
    return METHODS[name]
