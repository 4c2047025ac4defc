"""Runge-Kutta methods, each stated once, in exact rationals, for every backend.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j),   y_new = y + h sum_i b_i k_i

A method with an embedded one estimates its local error as e = h sum_i (b - b_hat)_i k_i. With a second
estimate e_low, of lower order, the error is |e|^2 / sqrt(|e|^2 + |e_low|^2 / 100).

Dense output inside a step, at theta of it, is the cubic Hermite interpolant of both ends, plus

    theta^2 (1 - theta)^2 h sum_i (d_0i + d_1i theta + d_2i theta (1 - theta) + d_3i theta^2 (1 - theta)) k_i

where a method has such weights d; the k_i may include stages that are evaluated for it alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

Row = tuple[Fraction, ...]


def row(text: str) -> Row:
    """Numbers between spaces: fractions or decimals, both exact."""
    return tuple(Fraction(number) for number in text.split())


def less(b: Row, other: Row) -> Row:
    """The difference of two methods' weights."""
    return tuple(x - y for x, y in zip(b, other, strict=True))


@dataclass(frozen=True)
class Tableau:
    """The coefficients of an explicit or diagonally implicit method, as exact as they are published.

    Attributes:
        order: of the solution that is propagated.
        a, b: the Butcher tableau; c is the row sums of a.
        source: where the coefficients are published.
        b_hat: the embedded method, or empty.
        b_low: the method of the second error estimate, or empty.
        extra: rows of further stages, which only dense output needs; the method is then FSAL.
        dense: rows of weights of the dense output, over the stages and the extra ones.
        error_order: the local error estimate scales as h to this power.
        digits: to which the coefficients are known; None for exact ones.
    """

    order: int
    a: tuple[Row, ...]
    b: Row
    source: str
    b_hat: Row = ()
    b_low: Row = ()
    extra: tuple[Row, ...] = ()
    dense: tuple[Row, ...] = ()
    error_order: int = 1
    digits: int | None = None

    @property
    def c(self) -> Row:
        """The stage times: row sums of a."""
        return tuple(sum(row, Fraction(0)) for row in self.a)

    @property
    def error(self) -> tuple[Row, ...]:
        """b - b_hat, and b - b_low where there is such a method."""
        lower = [hat for hat in (self.b_hat, self.b_low) if hat]
        return tuple(less(self.b, hat) for hat in lower)

    @functools.cached_property
    def implicit(self) -> bool:
        """Whether a stage's slope is also on its right-hand side."""
        return any(len(row) > i for i, row in enumerate(self.a))

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is at y_new, and serves the next step."""
        return len(self.b) > 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]


@dataclass(frozen=True)
class Numbers:
    """A tableau in floating point, as the backends take it: its extra stages follow the others."""

    a: list[list[float]]
    b: list[float]
    c: list[float]
    error: list[list[float]]
    dense: list[list[float]]
    error_order: float
    fsal: bool

    @classmethod
    def of(cls, tableau: Tableau) -> Numbers:
        """Every coefficient rounded once."""
        rows = (*tableau.a, *tableau.extra)
        return cls(
            a=[[float(v) for v in row] for row in rows],
            b=[float(v) for v in tableau.b],
            c=[float(sum(row, Fraction(0))) for row in rows],
            error=[[float(v) for v in row] for row in tableau.error],
            dense=[[float(v) for v in row] for row in tableau.dense],
            error_order=float(tableau.error_order),
            fsal=tableau.fsal,
        )


EULER = Tableau(1, a=((),), b=row("1"), source="Euler 1768")

MIDPOINT = Tableau(2, a=((), row("1/2")), b=row("0 1"), source="Runge 1895")

HEUN = Tableau(2, a=((), row("1")), b=row("1/2 1/2"), source="Heun 1900")

RALSTON = Tableau(
    2,
    a=((), row("2/3")),
    b=row("1/4 3/4"),
    source="Ralston 1962, Math. Comp. 16: least error bound",
)

SSPRK3 = Tableau(
    3,
    a=((), row("1"), row("1/4 1/4")),
    b=row("1/6 1/6 2/3"),
    source="Shu and Osher 1988, J. Comput. Phys. 77",
)

RK4 = Tableau(
    4,
    a=((), row("1/2"), row("0 1/2"), row("0 0 1")),
    b=row("1/6 1/3 1/3 1/6"),
    source="Kutta 1901, the classical method",
)

RK38 = Tableau(
    4,
    a=((), row("1/3"), row("-1/3 1"), row("1 -1 1")),
    b=row("1/8 3/8 3/8 1/8"),
    source="Kutta 1901, the 3/8 rule",
)

BOSH3 = Tableau(
    3,
    a=((), row("1/2"), row("0 3/4"), row("2/9 1/3 4/9")),
    b=row("2/9 1/3 4/9 0"),
    b_hat=row("7/24 1/4 1/3 1/8"),
    error_order=3,
    source="Bogacki and Shampine 1989, Appl. Math. Lett. 2",
)

DOPRI5 = Tableau(
    5,
    a=(
        (),
        row("1/5"),
        row("3/40 9/40"),
        row("44/45 -56/15 32/9"),
        row("19372/6561 -25360/2187 64448/6561 -212/729"),
        row("9017/3168 -355/33 46732/5247 49/176 -5103/18656"),
        row("35/384 0 500/1113 125/192 -2187/6784 11/84"),
    ),
    b=row("35/384 0 500/1113 125/192 -2187/6784 11/84 0"),
    b_hat=row("5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40"),
    dense=(
        row(
            "-12715105075/11282082432 0 87487479700/32700410799 -10690763975/1880347072 "
            "701980252875/199316789632 -1453857185/822651844 69997945/29380423"
        ),
    ),
    error_order=5,
    source="Dormand and Prince 1980, J. Comput. Appl. Math. 6; dense output: Hairer, Norsett and "
    "Wanner, Solving Ordinary Differential Equations I, II.6",
)

TSIT5 = Tableau(
    5,
    a=(
        (),
        row("0.161"),
        row(
            "-0.008480655492356988544426874250230774675121 "
            "0.3354806554923569885444268742502307746751"
        ),
        row(
            "2.897153057105493432130432594192938764925 -6.359448489975074843148159912383825625953 "
            "4.362295432869581411017727318190886861028"
        ),
        row(
            "5.325864828439256604428877920840511317836 -11.74888356406282787774717033978577296189 "
            "7.495539342889836208304604784564358155659 -0.0924950663617552492565020793320719161135"
        ),
        row(
            "5.861455442946420028659251486982647890394 -12.92096931784710929170611868178335939542 "
            "8.159367898576158643180400794539253485182 "
            "-0.07158497328140099722453054252582973869127 "
            "-0.02826905039406838290900305721271224146718"
        ),
        row(
            "0.09646076681806522951816731316512876333712 0.01 "
            "0.479889650414499574775249532290596519913 1.379008574103741893192274821856872770756 "
            "-3.290069515436080679901047585711363850116 2.324710524099773982415355918398765796109"
        ),
    ),
    b=row(
        "0.09646076681806522951816731316512876333712 0.01 "
        "0.479889650414499574775249532290596519913 1.379008574103741893192274821856872770756 "
        "-3.290069515436080679901047585711363850116 2.324710524099773982415355918398765796109 0"
    ),
    b_hat=row(
        "0.09468075576583945807478876255758922856118 0.009183565540343253096776363936645313759814 "
        "0.4877705284247615707855642599631228241517 1.234297566930478985655109673884237654036 "
        "-2.70771234998352545488110997505932167069 1.866628418170587035753719399566211498666 1/66"
    ),
    dense=(
        row(
            "-1.053088497729021557227490302523068549943 0.1017 "
            "2.490627285651252793083545072588195938349 -16.54810288924490271830729786228247324908 "
            "47.37952196281928121868158186819883280231 -34.87065786149660973623033877598148694164 2.5"
        ),
    ),
    error_order=5,
    digits=35,
    source="Tsitouras 2011, Comput. Math. Appl. 62; the decimals continued to the solution of the order "
    "conditions that they round",
)
