"""How an adaptive run chooses its steps: the norm of its errors and the controller they steer.

    factor = 0.9 err_n^(-(p + i + d)/k) err_{n-1}^((p + 2 d)/k) err_{n-2}^(-d/k),  kept in [0.2, 10],

where err_n <= 1 is the scaled local error of a step and k its order in the step: a digital PID filter
of the logarithms (Soderlind 2003, ACM Trans. Math. Softw. 29, 1).
"""

from __future__ import annotations

from collections.abc import Callable

from ..arguments import real
from ..errors import OptionError, UnknownName

NORMS = ("rms", "max", "rows")
"""Of the scaled errors of all elements: the root of their mean square, the largest, or the largest
root mean square of a row."""

CONTROLLERS = ("i", "pi", "pid")
"""I: each step from its own error alone. PI: Hairer and Wanner's (Solving ODEs II, IV.2), with
beta = 0.04. PID: Soderlind's H312PID, whose steps are the smoothest."""


_NAMED: dict[str, Callable[[float], tuple[float, float, float]]] = {
    "i": lambda order: (0.0, 1.0, 0.0),
    "pi": lambda order: (0.04 * order, 1 - 0.07 * order, 0.0),
    "pid": lambda order: (-2 / 9, 2 / 9, 1 / 18),
}


def gains(controller: object, order: float) -> tuple[float, float, float]:
    """The exponents of the last three errors, the newest first.

    Args:
        controller: a name of `CONTROLLERS`, or the coefficients (p, i, d).
        order: k, the power of the step with which the error scales.

    Raises:
        UnknownName: a name that does not exist.
        OptionError: anything else but three numbers whose sum is positive.
    """
    if isinstance(controller, str):
        if controller not in _NAMED:
            raise UnknownName.of("controller", controller, CONTROLLERS)
        p, i, d = _NAMED[controller](order)
    else:
        p, i, d = _coefficients(controller)
    return ((p + i + d) / order, -(p + 2 * d) / order, d / order)


def _coefficients(controller: object) -> tuple[float, ...]:
    if not isinstance(controller, (tuple, list)) or len(controller) != 3:
        raise OptionError(
            f'controller={controller!r} is no controller. Give "i", "pi", "pid" or three numbers '
            "(p, i, d)."
        )
    values = tuple(real("controller", v, low=-100.0) for v in controller)
    if sum(values) <= 0 or values[1] <= 0:
        raise OptionError(
            f"controller={controller!r} would enlarge steps of too large an error. Give (p, i, d) with "
            "i > 0 and p + i + d > 0."
        )
    return values


def norm(name: object) -> str:
    """The norm called ``name``.

    Raises:
        UnknownName: none is.
    """
    if not isinstance(name, str) or name not in NORMS:
        raise UnknownName.of("norm", name, NORMS)
    return name
