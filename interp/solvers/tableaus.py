"""Runge-Kutta methods, each stated once, in exact rationals, for every backend.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j),   y_new = y + h sum_i b_i k_i

A method with an embedded one estimates its local error as h sum_i error_i k_i, error = b - b_hat.
Dense output inside a step is the cubic Hermite interpolant of both ends, plus
theta^2 (1 - theta)^2 h sum_i dense_i k_i where a method has such weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


def _row(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(number) for number in text.split())


@dataclass(frozen=True)
class Tableau:
    """The coefficients of an explicit method, exact.

    Attributes:
        order: of the solution that is propagated.
        a, b: the Butcher tableau; c is the row sums of a.
        b_hat: the embedded method, or empty.
        dense: weights of the quartic part of the dense output, or empty.
        error_order: the local error estimate scales as h to this power.
        source: where the coefficients are published.
    """

    order: int
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]
    source: str
    b_hat: tuple[Fraction, ...] = ()
    dense: tuple[Fraction, ...] = ()
    error_order: int = 1

    @property
    def c(self) -> tuple[Fraction, ...]:
        """The stage times: row sums of a."""
        return tuple(sum(row, Fraction(0)) for row in self.a)

    @property
    def error(self) -> tuple[Fraction, ...]:
        """b - b_hat."""
        return (
            tuple(b - hat for b, hat in zip(self.b, self.b_hat, strict=True)) if self.b_hat else ()
        )

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is at y_new, and serves the next step."""
        return len(self.b) > 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]


@dataclass(frozen=True)
class Numbers:
    """A tableau in floating point, as the backends take it."""

    a: list[list[float]]
    b: list[float]
    c: list[float]
    error: list[float]
    dense: list[float]
    error_order: float
    fsal: bool

    @classmethod
    def of(cls, tableau: Tableau) -> Numbers:
        """Every coefficient rounded once."""
        return cls(
            a=[[float(v) for v in row] for row in tableau.a],
            b=[float(v) for v in tableau.b],
            c=[float(v) for v in tableau.c],
            error=[float(v) for v in tableau.error],
            dense=[float(v) for v in tableau.dense],
            error_order=float(tableau.error_order),
            fsal=tableau.fsal,
        )


EULER = Tableau(1, a=((),), b=_row("1"), source="Euler 1768")

MIDPOINT = Tableau(2, a=((), _row("1/2")), b=_row("0 1"), source="Runge 1895")

HEUN = Tableau(2, a=((), _row("1")), b=_row("1/2 1/2"), source="Heun 1900")

RALSTON = Tableau(
    2,
    a=((), _row("2/3")),
    b=_row("1/4 3/4"),
    source="Ralston 1962, Math. Comp. 16: least error bound",
)

SSPRK3 = Tableau(
    3,
    a=((), _row("1"), _row("1/4 1/4")),
    b=_row("1/6 1/6 2/3"),
    source="Shu and Osher 1988, J. Comput. Phys. 77",
)

RK4 = Tableau(
    4,
    a=((), _row("1/2"), _row("0 1/2"), _row("0 0 1")),
    b=_row("1/6 1/3 1/3 1/6"),
    source="Kutta 1901, the classical method",
)

RK38 = Tableau(
    4,
    a=((), _row("1/3"), _row("-1/3 1"), _row("1 -1 1")),
    b=_row("1/8 3/8 3/8 1/8"),
    source="Kutta 1901, the 3/8 rule",
)

BOSH3 = Tableau(
    3,
    a=((), _row("1/2"), _row("0 3/4"), _row("2/9 1/3 4/9")),
    b=_row("2/9 1/3 4/9 0"),
    b_hat=_row("7/24 1/4 1/3 1/8"),
    error_order=3,
    source="Bogacki and Shampine 1989, Appl. Math. Lett. 2",
)

DOPRI5 = Tableau(
    5,
    a=(
        (),
        _row("1/5"),
        _row("3/40 9/40"),
        _row("44/45 -56/15 32/9"),
        _row("19372/6561 -25360/2187 64448/6561 -212/729"),
        _row("9017/3168 -355/33 46732/5247 49/176 -5103/18656"),
        _row("35/384 0 500/1113 125/192 -2187/6784 11/84"),
    ),
    b=_row("35/384 0 500/1113 125/192 -2187/6784 11/84 0"),
    b_hat=_row("5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40"),
    dense=_row(
        "-12715105075/11282082432 0 87487479700/32700410799 -10690763975/1880347072 "
        "701980252875/199316789632 -1453857185/822651844 69997945/29380423"
    ),
    error_order=5,
    source="Dormand and Prince 1980, J. Comput. Appl. Math. 6; dense output: Hairer, Norsett and "
    "Wanner, Solving Ordinary Differential Equations I, II.6",
)
