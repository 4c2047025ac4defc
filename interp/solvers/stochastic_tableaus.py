"""One-step methods of SDEs, each stated once: stages, and what they add up to.

A stage asks for a slope at the time t + c h and the state y + terms; a term is a weight times a basis
times an earlier slope. With W and H the path's increment and space-time Levy area over the step:

    h     W     sqrt = sqrt(h)     I10 = (H + W / 2)     I11 = (W^2 - h) / 2     I111 = (W^3 / h - 3 W) / 6

I10 and I111 are the iterated integrals over h; in Stratonovich's calculus I11 is W^2 / 2. Both normals
of a step, W and H, are those of the one path.
"""

from __future__ import annotations

from dataclasses import dataclass

Term = tuple[int, str, float]
"""(slope, basis, weight), slopes counted in the order in which they are asked for."""


@dataclass(frozen=True)
class Scheme:
    """A one-step method.

    Attributes:
        stages: (c, "drift", "diffusion" or "correction", terms): the correction is g dg/dx.
        end: what the step adds to the state.
        error: an estimate of the local error; empty where steps cannot adapt.
        ito: the calculus of I11.
        area: whether H is used.
    """

    stages: tuple[tuple[float, str, tuple[Term, ...]], ...]
    end: tuple[Term, ...]
    error: tuple[Term, ...] = ()
    ito: bool = True

    @property
    def area(self) -> bool:
        """Whether some term has the area."""
        terms = [*self.end, *self.error, *(term for _, _, some in self.stages for term in some)]
        return any(basis == "I10" for _, basis, _ in terms)


_START = ((0.0, "drift", ()), (0.0, "diffusion", ()))

EULER_MARUYAMA = Scheme(_START, ((0, "h", 1.0), (1, "W", 1.0)))


def milstein(derivative_free: bool, ito: bool) -> Scheme:
    """Milstein's method (Kloeden and Platen 1992, 10.3.1), or its form without derivatives (11.1.3)."""
    if not derivative_free:
        return Scheme(
            (*_START, (0.0, "correction", ())),
            ((0, "h", 1.0), (1, "W", 1.0), (2, "I11", 1.0)),
            ito=ito,
        )
    moved = (0.0, "diffusion", ((0, "h", 1.0), (1, "sqrt", 1.0)))
    end = ((0, "h", 1.0), (1, "W", 1.0), (1, "I11/sqrt", -1.0), (2, "I11/sqrt", 1.0))
    return Scheme((*_START, moved), end, ito=ito)


_EULER_STEP = ((0, "h", 1.0), (1, "W", 1.0))

HEUN = Scheme(  # stochastic Heun: Rumelin, SIAM J. Numer. Anal. 19 (1982)
    (*_START, (1.0, "drift", _EULER_STEP), (1.0, "diffusion", _EULER_STEP)),
    ((0, "h", 0.5), (2, "h", 0.5), (1, "W", 0.5), (3, "W", 0.5)),
    error=((0, "h", -0.5), (2, "h", 0.5), (1, "W", -0.5), (3, "W", 0.5)),
    ito=False,
)

_DRIFT_ERROR = ((0, "h", -2 / 3), (2, "h", 2 / 3))

SRA1 = Scheme(  # Roessler, SIAM J. Numer. Anal. 48 (2010), table 6.3: additive noise
    (
        (0.0, "drift", ()),
        (1.0, "diffusion", ()),
        (0.75, "drift", ((0, "h", 0.75), (1, "I10", 1.5))),
        (0.0, "diffusion", ()),
    ),
    ((0, "h", 1 / 3), (2, "h", 2 / 3), (1, "W", 1.0), (1, "I10", -1.0), (3, "I10", 1.0)),
    error=_DRIFT_ERROR,
)

SRIW1 = Scheme(  # the same, table 6.2: diagonal or scalar noise, Ito
    (
        *_START,
        (0.75, "drift", ((0, "h", 0.75), (1, "I10", 1.5))),
        (0.25, "diffusion", ((0, "h", 0.25), (1, "sqrt", 0.5))),
        (1.0, "diffusion", ((0, "h", 1.0), (1, "sqrt", -1.0))),
        (
            0.25,
            "diffusion",
            ((0, "h", 0.25), (1, "sqrt", -5.0), (3, "sqrt", 3.0), (4, "sqrt", 0.5)),
        ),
    ),
    (
        (0, "h", 1 / 3), (2, "h", 2 / 3),
        (1, "W", -1.0), (3, "W", 4 / 3), (4, "W", 2 / 3),
        (1, "I11/sqrt", -1.0), (3, "I11/sqrt", 4 / 3), (4, "I11/sqrt", -1 / 3),
        (1, "I10", 2.0), (3, "I10", -4 / 3), (4, "I10", -2 / 3),
        (1, "I111", -2.0), (3, "I111", 5 / 3), (4, "I111", -2 / 3), (5, "I111", 1.0),
    ),
    error=(  # Rackauckas and Nie, Discrete Contin. Dyn. Syst. B 22 (2017)
        *_DRIFT_ERROR,
        (1, "I10", 2.0), (3, "I10", -4 / 3), (4, "I10", -2 / 3),
        (1, "I111", -2.0), (3, "I111", 5 / 3), (4, "I111", -2 / 3), (5, "I111", 1.0),
    ),
)  # fmt: skip
