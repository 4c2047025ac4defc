"""Every tableau satisfies its order conditions, in exact rationals or to the digits published.

A method has order p when for every rooted tree of at most p nodes sum_i b_i Phi_i(tree) equals
1 / gamma(tree), and its continuous extension when sum_i b_i(theta) Phi_i equals
theta^|tree| / gamma (Butcher 1963; Hairer, Norsett, Wanner, Solving ODEs I, II.2 and II.6).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest
import torch

from interp.solvers import methods
from interp.solvers.catalogue import METHODS
from interp.solvers.tableaus import Tableau

Tree = tuple["Tree", ...]
#: Orders of the continuous extensions that are better than cubic Hermite.
DENSE = {"dopri5": 4, "tsit5": 4, "dop853": 7}
LOWER = {"bosh3": 2, "dopri5": 4, "tsit5": 4, "dop853": 5, "kvaerno3": 2, "kencarp4": 3}
TABLEAUS = {name: m.tableau for name, m in METHODS.items() if m.tableau is not None}


def forests(nodes: int, largest: Tree | None = None) -> Iterator[Tree]:
    """Multisets of trees with ``nodes`` nodes together, none above ``largest``."""
    if nodes == 0:
        yield ()
    for first in range(nodes, 0, -1):
        for tree in trees(first):
            if largest is None or (size(tree), tree) <= (size(largest), largest):
                for rest in forests(nodes - first, tree):
                    yield (tree, *rest)


@functools.cache
def trees(nodes: int) -> list[Tree]:
    """All rooted trees with ``nodes`` nodes: a root and the forest that hangs from it."""
    return list(forests(nodes - 1))


def size(tree: Tree) -> int:
    return 1 + sum(size(child) for child in tree)


def gamma(tree: Tree) -> int:
    return size(tree) * math.prod(gamma(child) for child in tree)


Matrix = tuple[tuple[Fraction, ...], ...]


@functools.cache
def phi(tree: Tree, a: Matrix, digits: int | None) -> list[Fraction]:
    """The elementary weight of each stage; of decimals, rounded well beyond their own digits."""
    product = [Fraction(1)] * len(a)
    for child in tree:
        inner = phi(child, a, digits)
        reached = [sum((w * v for w, v in zip(row, inner, strict=False)), Fraction(0)) for row in a]
        product = [p * r for p, r in zip(product, reached, strict=True)]
    return product if digits is None else [round(v, digits + 10) for v in product]


def misses(
    a: Matrix, b: Sequence[Fraction], order: int, digits: int | None, theta: Fraction = Fraction(1)
) -> list[Tree]:
    """The trees of ``order`` nodes whose condition fails at ``theta`` of the step."""
    tolerance = 0 if digits is None else Fraction(1, 10**digits)

    def fails(tree: Tree) -> bool:
        weight = sum(w * v for w, v in zip(b, phi(tree, a, digits), strict=True))
        return abs(weight - theta**order / gamma(tree)) > tolerance

    return [tree for tree in trees(order) if fails(tree)]


def test_the_number_of_rooted_trees() -> None:
    # Cayley 1857: 1, 1, 2, 4, 9, 20; so 17 conditions up to order 5.
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    assert len({tree for n in range(1, 7) for tree in trees(n)}) == 37


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_is_the_stated_one_and_no_higher(name: str) -> None:
    tableau = TABLEAUS[name]
    for order in range(1, tableau.order + 1):
        assert misses(tableau.a, tableau.b, order, tableau.digits) == []
    assert misses(tableau.a, tableau.b, tableau.order + 1, tableau.digits)
    assert METHODS[name].order == tableau.order


@pytest.mark.parametrize("name", [name for name, t in TABLEAUS.items() if t.b_hat])
def test_orders_of_the_embedded_methods(name: str) -> None:
    """A sole estimate scales as h^(q + 1); two of orders q and r, as h^(2 (q + 1) - (r + 1))."""
    tableau = TABLEAUS[name]
    orders = []
    for weights in filter(None, (tableau.b_hat, tableau.b_low)):
        met = itertools.takewhile(
            lambda n: not misses(tableau.a, weights, n, tableau.digits),  # noqa: B023
            itertools.count(1),
        )
        orders.append(max(met))
    assert orders == [LOWER[name], 3][: len(orders)]
    powers = [q + 1 for q in orders]
    assert tableau.error_order == (2 * powers[0] - powers[1] if len(powers) == 2 else powers[0])
    assert METHODS[name].adaptive


@pytest.mark.parametrize("name", TABLEAUS)
def test_it_is_explicit_or_diagonally_implicit_and_consistent(name: str) -> None:
    tableau = TABLEAUS[name]
    assert len(tableau.a) == len(tableau.b)
    if name in ("kvaerno3", "kencarp4"):
        assert [len(row) for row in tableau.a] == list(range(1, len(tableau.b) + 1))
        assert tableau.a[0] == (0,)
        assert len({row[-1] for row in tableau.a[1:]}) == 1  # one matrix a step
        assert tableau.b == tableau.a[-1]  # stiffly accurate
        assert METHODS[name].implicit
    else:
        assert all(len(row) == i for i, row in enumerate(tableau.a))
    assert tableau.c == tuple(sum(row, Fraction(0)) for row in tableau.a)
    assert tableau.c[0] == 0
    assert misses(tableau.a, tableau.b, 1, tableau.digits) == []


@pytest.mark.parametrize("name", TABLEAUS)
def test_first_same_as_last(name: str) -> None:
    tableau = TABLEAUS[name]
    assert tableau.fsal == (name in ("bosh3", "dopri5", "tsit5", "dop853"))
    assert tableau.fsal or not tableau.extra
    if tableau.fsal:
        assert METHODS[name].numbers.c[len(tableau.b) - 1] == 1
        assert tableau.b[-1] == 0
        assert tableau.a[-1] == tableau.b[:-1]


def continuous(tableau: Tableau, theta: Fraction) -> tuple[Matrix, list[Fraction]]:
    """The tableau with all its stages and one at the step's end, and the weights at theta.

    Cubic Hermite: (1 - e) y + e y_1 + h (theta (1-theta)^2 k_0 - theta^2 (1-theta) k_end) with
    e = theta^2 (3 - 2 theta), and theta^2 (1-theta)^2 h sum d_j(theta) k_j on top.
    """
    rest = 1 - theta
    basis = (Fraction(1), theta, theta * rest, theta**2 * rest)
    a = (*tableau.a, *tableau.extra, tableau.b)
    b = [theta**2 * (3 - 2 * theta) * w for w in tableau.b] + [Fraction(0)] * len(tableau.extra)
    for power, row in zip(basis, tableau.dense, strict=False):
        for j, d in enumerate(row):
            b[j] += theta**2 * rest**2 * power * d
    b[0] += theta * rest**2
    return a, [*b, -(theta**2) * rest]


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_of_the_dense_output(name: str) -> None:
    tableau = TABLEAUS[name]
    expected = DENSE.get(name, min(tableau.order, 3))
    # The conditions are polynomials in theta of the degree 7 or less, with a zero at 0.
    thetas = [Fraction(k, 8) for k in range(1, 9 if name == "dop853" else 6)]
    digits = tableau.digits and tableau.digits - 3  # these weights are of the size of a hundred
    met = itertools.takewhile(
        lambda order: (
            not any(misses(*continuous(tableau, theta), order, digits, theta) for theta in thetas)
        ),
        itertools.count(1),
    )
    assert max(met) == expected


@pytest.mark.parametrize("name", [name for name, t in TABLEAUS.items() if t.implicit])
def test_implicit_methods_are_l_stable(name: str) -> None:
    """|R(z)| <= 1 on the imaginary axis, which bounds it on the left half plane, and R(-inf) = 0."""
    numbers = METHODS[name].numbers
    stages = len(numbers.b)
    a = torch.zeros(stages, stages, dtype=torch.complex128)
    for i, row in enumerate(numbers.a):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.complex128)
    b, one = torch.tensor(numbers.b, dtype=torch.complex128), torch.ones(stages, 1, dtype=a.dtype)

    def amplification(z: complex) -> float:
        inner = torch.linalg.solve(torch.eye(stages, dtype=a.dtype) - z * a, one)
        return abs(complex(1 + z * (b @ inner)[0]))

    assert max(amplification(1j * 1.1**k) for k in range(-40, 120)) < 1 + 1e-10
    assert amplification(-1e8) < 1e-6
    assert abs(amplification(-0.1) - math.exp(-0.1)) < 1e-4


def test_the_numbers_are_the_fractions_rounded_once() -> None:
    for method in methods("ode"):
        if method.tableau is None:
            continue
        tableau, numbers = TABLEAUS[method.name], method.numbers
        for exact, rounded in (
            (tableau.b, numbers.b), (tableau.c, numbers.c[: len(tableau.c)]),
            *zip(tableau.error, numbers.error, strict=True),
            *zip(tableau.dense, numbers.dense, strict=True),
            *zip((*tableau.a, *tableau.extra), numbers.a, strict=True),
        ):  # fmt: skip
            assert [float(v) for v in exact] == list(rounded)
        assert numbers.fsal == tableau.fsal
