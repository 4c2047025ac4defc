"""Implicit methods for stiff fields: diagonally implicit, with an explicit first stage.

All are L-stable and stiffly accurate: the last stage is the state at the step's end, and a component
that decays at once is at its end at once, whatever the step.
"""

from fractions import Fraction

from .tableaus import Row, Tableau, row

# The root of 6 g^3 - 18 g^2 + 9 g - 1 that makes the method L-stable.
_G = Fraction("0.43586652150845899941601945119355684252929409293842564")


def _kvaerno3() -> tuple[Row, ...]:
    g = _G
    return (
        (Fraction(0),),
        (g, g),
        ((-4 * g**2 + 6 * g - 1) / (4 * g), (1 - 2 * g) / (4 * g), g),
        (
            (6 * g - 1) / (12 * g),
            -1 / ((24 * g - 12) * g),
            (-6 * g**2 + 6 * g - 1) / (6 * g - 3),
            g,
        ),
    )


KVAERNO3 = Tableau(
    3,
    a=_kvaerno3(),
    b=_kvaerno3()[3],
    b_hat=(*_kvaerno3()[2], Fraction(0)),
    error_order=3,
    digits=45,
    source="Kvaerno 2004, BIT 44: ESDIRK 3/2",
)

KENCARP4 = Tableau(
    4,
    a=(
        row("0"),
        row("1/4 1/4"),
        row("8611/62500 -1743/31250 1/4"),
        row("5012029/34652500 -654441/2922500 174375/388108 1/4"),
        row("15267082809/155376265600 -71443401/120774400 730878875/902184768 2285395/8070912 1/4"),
        row("82889/524892 0 15625/83664 69875/102672 -2260/8211 1/4"),
    ),
    b=row("82889/524892 0 15625/83664 69875/102672 -2260/8211 1/4"),
    b_hat=row(
        "4586570599/29645900160 0 178811875/945068544 814220225/1159782912 -3700637/11593932 "
        "61727/225920"
    ),
    error_order=4,
    source="Kennedy and Carpenter 2003, Appl. Numer. Math. 44: ESDIRK4(3)6L[2]SA, the implicit part of "
    "ARK4(3)6L[2]SA",
)
