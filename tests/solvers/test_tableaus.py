"""Every tableau satisfies its order conditions, in exact rationals.

A method has order p when for every rooted tree of at most p nodes sum_i b_i Phi_i(tree) equals
1 / gamma(tree), and its continuous extension when sum_i b_i(theta) Phi_i equals
theta^|tree| / gamma (Butcher 1963; Hairer, Norsett, Wanner, Solving ODEs I, II.2 and II.6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest

from interp.solvers import methods
from interp.solvers.catalogue import METHODS
from interp.solvers.tableaus import Tableau

Tree = tuple["Tree", ...]
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


def trees(nodes: int) -> list[Tree]:
    """All rooted trees with ``nodes`` nodes: a root and the forest that hangs from it."""
    return list(forests(nodes - 1))


def size(tree: Tree) -> int:
    return 1 + sum(size(child) for child in tree)


def gamma(tree: Tree) -> int:
    return size(tree) * math.prod(gamma(child) for child in tree)


def phi(tree: Tree, a: Sequence[Sequence[Fraction]]) -> list[Fraction]:
    """The elementary weight of each stage."""
    product = [Fraction(1)] * len(a)
    for child in tree:
        inner = phi(child, a)
        reached = [sum((w * v for w, v in zip(row, inner, strict=False)), Fraction(0)) for row in a]
        product = [p * r for p, r in zip(product, reached, strict=True)]
    return product


def misses(a: Sequence[Sequence[Fraction]], b: Sequence[Fraction], order: int) -> list[Tree]:
    """The trees of ``order`` nodes whose condition fails."""
    return [
        tree
        for tree in trees(order)
        if sum(w * v for w, v in zip(b, phi(tree, a), strict=True)) != Fraction(1, gamma(tree))
    ]


def test_the_number_of_rooted_trees() -> None:
    # Cayley 1857: 1, 1, 2, 4, 9, 20; so 17 conditions up to order 5.
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    assert len({tree for n in range(1, 7) for tree in trees(n)}) == 37


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_is_the_stated_one_and_no_higher(name: str) -> None:
    tableau = TABLEAUS[name]
    for order in range(1, tableau.order + 1):
        assert misses(tableau.a, tableau.b, order) == []
    assert misses(tableau.a, tableau.b, tableau.order + 1)
    assert METHODS[name].order == tableau.order


@pytest.mark.parametrize("name", [name for name, t in TABLEAUS.items() if t.b_hat])
def test_the_embedded_method_is_one_order_below_the_error(name: str) -> None:
    tableau = TABLEAUS[name]
    for order in range(1, tableau.error_order):
        assert misses(tableau.a, tableau.b_hat, order) == []
    assert misses(tableau.a, tableau.b_hat, tableau.error_order)
    assert tableau.error == tuple(b - hat for b, hat in zip(tableau.b, tableau.b_hat, strict=True))
    assert METHODS[name].adaptive


@pytest.mark.parametrize("name", TABLEAUS)
def test_it_is_explicit_and_consistent(name: str) -> None:
    tableau = TABLEAUS[name]
    assert len(tableau.a) == len(tableau.b)
    assert all(len(row) == i for i, row in enumerate(tableau.a))
    assert tableau.c == tuple(sum(row, Fraction(0)) for row in tableau.a)
    assert tableau.c[0] == 0
    assert sum(tableau.b) == 1


@pytest.mark.parametrize("name", TABLEAUS)
def test_first_same_as_last(name: str) -> None:
    tableau = TABLEAUS[name]
    assert tableau.fsal == (name in ("bosh3", "dopri5"))
    if tableau.fsal:
        assert tableau.c[-1] == 1
        assert tableau.b[-1] == 0
        assert tableau.a[-1] == tableau.b[:-1]


def continuous(tableau: Tableau, theta: Fraction) -> tuple[list[list[Fraction]], list[Fraction]]:
    """The tableau with a stage at the step's end, and the weights of the state at theta.

    Cubic Hermite: (1 - e) y + e y_1 + h (theta (1-theta)^2 k_0 - theta^2 (1-theta) k_end) with
    e = theta^2 (3 - 2 theta), and theta^2 (1-theta)^2 h sum d_j k_j on top.
    """
    rest = 1 - theta
    a = [list(row) for row in tableau.a]
    b = [theta**2 * (3 - 2 * theta) * w for w in tableau.b]
    for j, d in enumerate(tableau.dense):
        b[j] += theta**2 * rest**2 * d
    b[0] += theta * rest**2
    a.append(list(tableau.b))
    b.append(-(theta**2) * rest)
    return a, b


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_of_the_dense_output(name: str) -> None:
    tableau = TABLEAUS[name]
    expected = 4 if name == "dopri5" else min(tableau.order, 3)
    # The conditions are polynomials of degree 4 or less in theta, with a zero at 0: five more decide.
    for theta in (Fraction(k, 6) for k in range(1, 7)):
        a, b = continuous(tableau, theta)
        for order in range(1, expected + 1):
            for tree in trees(order):
                weight = sum(w * v for w, v in zip(b, phi(tree, a), strict=True))
                assert weight == theta**order / gamma(tree)


def test_the_numbers_are_the_fractions_rounded_once() -> None:
    for method in methods("ode"):
        tableau, numbers = TABLEAUS[method.name], method.numbers
        for exact, rounded in (
            (tableau.b, numbers.b), (tableau.c, numbers.c), (tableau.error, numbers.error),
            (tableau.dense, numbers.dense), *zip(tableau.a, numbers.a, strict=True),
        ):  # fmt: skip
            assert [float(v) for v in exact] == list(rounded)
        assert numbers.fsal == tableau.fsal
