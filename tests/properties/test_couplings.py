"""Random batches: who is paired with whom keeps the ends, and optimal transport is optimal."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import couplings
from interp.exact import transport_plan
from interp.testing import targets

MANY = settings(deadline=None, max_examples=30)
KEEPING = ("independent", "given", "optimal_transport")
DTYPES = st.sampled_from([torch.float32, torch.float64])


def rows_of(base, target, n, seed=0, dtype=torch.float64):
    return (law.sample(n, seed=seed + i, dtype=dtype) for i, law in enumerate((base, target)))


def ordered(rows):
    return rows[torch.argsort(rows[:, 0])]


@MANY
@given(targets(dim=2), targets(dim=2), st.integers(1, 40), st.sampled_from(KEEPING), DTYPES)
def test_couplings_that_keep_both_ends_do(base, target, n, name, dtype):
    """Every row of x0 and of x1 stands in one pair, bit for bit, and labels stay with their x1."""
    x0, x1 = rows_of(base, target, n, dtype=dtype)
    coupling, labels = couplings.from_config(name), x1[:, 0].clone()
    generator = torch.Generator().manual_seed(0)
    a, b, carried = coupling(x0, x1, labels=labels, generator=generator)
    assert torch.equal(ordered(a), ordered(x0))
    assert torch.equal(ordered(b), ordered(x1))
    assert torch.equal(carried, b[:, 0])


@MANY
@given(targets(dim=2), targets(dim=2), st.integers(2, 40), st.integers(0, 9), DTYPES)
def test_optimal_transport_costs_no_more_than_another_pairing(base, target, n, seed, dtype):
    """And no swap of two partners makes it cheaper; for rounding 1e-12 of all costs, 1e-6 in single."""
    x0, x1 = rows_of(base, target, n, seed, dtype)
    a, b = (rows.double() for rows in couplings.optimal_transport()(x0, x1))
    table = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    own = table.diagonal()
    rounding = (1e-12 if dtype is torch.float64 else 1e-6) * table.mean(1).sum()
    assert own.sum() <= (x0.double() - x1.double()).square().sum() + rounding
    assert (table + table.mT >= own + own[:, None] - rounding).all()


@MANY
@given(targets(dim=1), targets(dim=1), st.integers(1, 40))
def test_optimal_transport_on_the_line_keeps_the_order(base, target, n):
    x0, x1 = rows_of(base, target, n)
    a, b = couplings.optimal_transport()(x0, x1)
    assert torch.equal(torch.argsort(a[:, 0]), torch.argsort(b[:, 0]))


@settings(deadline=None, max_examples=5)
@given(targets(dim=2, kinds=["gaussian"]), targets(dim=2, kinds=["gaussian"]))
def test_the_plan_of_a_batch_comes_to_that_of_the_laws(base, target):
    """Cov[x0, x1] of 1000 pairs against the closed form.

    Where the plan is x1 = T x0 a sampled covariance is off by s0 s1 sqrt(2 / n), 0.045 s0 s1; six of
    these leave room for the batch's own bias, which is of the order n^(-1/2) in two dimensions.
    """
    x0, x1 = rows_of(base, target, 1000)
    a, b = couplings.optimal_transport()(x0, x1)
    found = (a - a.mean(0)).mT @ (b - b.mean(0)) / 999
    size = float(base.cov.diagonal().max() * target.cov.diagonal().max()) ** 0.5
    allowed = 6 * math.sqrt(2 / 1000) * size
    assert (found - transport_plan(base.cov, target.cov)).abs().max() <= allowed
