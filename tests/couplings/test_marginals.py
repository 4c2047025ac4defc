"""Each coupling states its marginals; here they hold."""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import couplings
from interp.couplings.draws import by_row, jointly

quick = settings(deadline=None, max_examples=25)

FLOATS = st.sampled_from([torch.float32, torch.float64])
SHAPES = st.sampled_from([(), (1,), (3,), (1, 2, 2)])

# What keeps each row of both ends, of x1 alone, and of neither.
EXACT = [
    couplings.independent(),
    couplings.given(),
    couplings.optimal_transport(),
    couplings.partial(1.0),
    couplings.conditional(),
    couplings.conditional(weight=3.0),
    couplings.conditional("independent"),
]
DATA_EXACT = [
    couplings.optimal_transport(reg=2.0),
    couplings.schroedinger_bridge(1.0),
    couplings.unbalanced((2.0, None)),
    couplings.conditional(couplings.schroedinger_bridge(1.0)),
    couplings.conditional(couplings.optimal_transport(reg=2.0), weight=3.0),
]
DRAWN = [
    couplings.unbalanced(),
    couplings.unbalanced(3.0),
    couplings.unbalanced((None, 2.0)),
    couplings.partial(0.6),
    couplings.conditional("partial"),
]
EVERY = EXACT + DATA_EXACT + DRAWN


@st.composite
def batches(draw):
    """x0, x1 and labels in which every row is told from every other."""
    rows, shape, dtype = draw(st.integers(1, 12)), draw(SHAPES), draw(FLOATS)
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x0, x1 = (torch.randn(rows, *shape, dtype=dtype, generator=gen) for _ in range(2))
    return x0, x1 + draw(st.sampled_from([0.0, 1.0])), torch.randint(3, (rows,), generator=gen)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def found(rows, among):
    """Which row of ``among`` each of ``rows`` is: they are the same samples, bit for bit."""
    same = (rows[:, None] == among).reshape(len(rows), len(among), -1).all(2)
    assert same.any(1).all()
    return same.int().argmax(1)


@quick
@given(batches(), st.sampled_from(EVERY))
def test_pairs_are_made_of_the_same_samples_and_labels_go_with_their_x1(batch, coupling):
    x0, x1, labels = batch
    a, b, c = coupling(x0, x1, labels, generator=seeded())
    for out, given_ in ((a, x0), (b, x1), (c, labels)):
        assert (out.shape, out.dtype, out.device) == (given_.shape, given_.dtype, given_.device)
    found(a, x0)
    assert torch.equal(labels[found(b, x1)], c)


@quick
@given(batches(), st.sampled_from(EXACT))
def test_both_ends_are_kept_by_a_permutation(batch, coupling):
    x0, x1, labels = batch
    a, b, c = coupling(x0, x1, labels, generator=seeded())
    assert sorted(found(a, x0).tolist()) == list(range(len(x0)))
    assert torch.equal(b, x1)
    assert torch.equal(c, labels)


@quick
@given(batches(), st.sampled_from(DATA_EXACT))
def test_the_data_end_is_kept_row_by_row(batch, coupling):
    x0, x1, labels = batch
    _, b, c = coupling(x0, x1, labels, generator=seeded())
    assert torch.equal(b, x1)
    assert torch.equal(c, labels)


def test_unbalanced_keeps_the_base_where_it_is_told_to():
    x0, x1 = torch.randn(20, 2, generator=seeded(1)), torch.randn(20, 2, generator=seeded(2))
    a, b = couplings.unbalanced((None, 0.5))(x0, x1, generator=seeded())
    assert torch.equal(a, x0)
    assert len(set(found(b, x1).tolist())) < 20


@quick
@given(batches(), st.sampled_from(EVERY), st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_pairs_and_torchs_own_generator_is_left_alone(
    batch, coupling, seed
):
    x0, x1, labels = batch
    before = torch.get_rng_state()
    first = coupling(x0, x1, labels, generator=seeded(seed))
    assert torch.equal(torch.get_rng_state(), before)
    for mine, again in zip(first, coupling(x0, x1, labels, generator=seeded(seed)), strict=True):
        assert torch.equal(mine, again)
    torch.manual_seed(seed)
    for mine, again in zip(first, coupling(x0, x1, labels), strict=True):  # None is torch's own
        assert torch.equal(mine, again)


def test_entropic_plans_meet_each_base_row_once_in_expectation():
    rows, draws = 16, 200
    x0, x1 = (
        torch.randn(rows, 2, generator=seeded(1)),
        torch.randn(rows, 2, generator=seeded(2)) + 1,
    )
    coupling, generator, counts = couplings.optimal_transport(reg=0.5), seeded(), torch.zeros(rows)
    for _ in range(draws):
        counts += torch.bincount(
            found(coupling(x0, x1, generator=generator)[0], x0), minlength=rows
        )
    # A count is a sum of draws of mean 1 and variance below 1: four standard errors of the largest.
    assert (counts / draws - 1).abs().max() < 4 / math.sqrt(draws)


def test_a_row_is_drawn_by_its_part_of_the_plan():
    rows, draws = 5, 4000
    log_plan = torch.randn(rows, rows, generator=seeded(1), dtype=torch.float64) * 2
    generator, counts = seeded(), torch.zeros(rows, rows)
    for _ in range(draws):
        counts[torch.arange(rows), by_row(log_plan, generator)] += 1
    plan = torch.softmax(log_plan, 1)
    # Five standard errors of a frequency.
    assert ((counts / draws - plan).abs() < 5 * (plan * (1 - plan) / draws).sqrt()).all()


def test_pairs_drawn_jointly_have_the_law_of_the_normalised_plan():
    rows, draws = 6, 4000
    x0, x1 = (
        torch.randn(rows, 2, generator=seeded(1)),
        2 * torch.randn(rows, 2, generator=seeded(2)),
    )
    log_plan = couplings.unbalanced(1.0, reg=0.5).plan(x0, x1)
    plan = torch.softmax(log_plan.flatten(), 0)
    generator, counts = seeded(), torch.zeros(rows * rows)
    for _ in range(draws):
        i, j = jointly(log_plan, generator)
        counts += torch.bincount(i * rows + j, minlength=rows * rows)
    # Stratified draws vary less than independent ones: five of those standard errors.
    error = (counts / (draws * rows) - plan).abs()
    assert (error < 5 * (plan / (draws * rows)).sqrt()).all()
    assert (plan.reshape(rows, rows).sum(1) - 1 / rows).abs().max() > 0.05  # it is re-weighted


def test_what_has_no_mass_is_never_drawn():
    log_plan = torch.full((4, 4), -math.inf, dtype=torch.float64)
    log_plan[torch.arange(4), torch.tensor([2, 0, 3, 0])] = -800.0  # exp underflows
    assert by_row(log_plan, seeded()).tolist() == [2, 0, 3, 0]
    i, j = jointly(log_plan, seeded())
    assert set(zip(i.tolist(), j.tolist(), strict=True)) <= {(0, 2), (1, 0), (2, 3), (3, 0)}


@quick
@given(st.integers(2, 30), st.floats(0.05, 1.0))
def test_partial_pairs_the_cheapest_rows_equally_often(rows, mass):
    x0, x1 = torch.randn(rows, 2, generator=seeded(1)), torch.randn(rows, 2, generator=seeded(2))
    a, b = couplings.partial(mass)(x0, x1, generator=seeded())
    kept = max(1, round(mass * rows))
    for out, given_ in ((a, x0), (b, x1)):
        counts = torch.bincount(found(out, given_), minlength=rows)
        counts = counts[counts > 0]
        assert len(counts) == kept
        assert counts.max() - counts.min() <= 1


# Labels: what a plan that does not see them does to the base, and what does not


def base_given_label(coupling, batches_=60, rows=64):
    """Mean and variance of x0 among the pairs of each of two labels whose data lie apart."""
    generator, seen = seeded(3), {0: [], 1: []}
    for _ in range(batches_):
        labels = torch.arange(rows) % 2
        x1 = (2.0 * labels - 1)[:, None] * 3 + torch.randn(rows, 1, generator=generator)
        x0 = torch.randn(rows, 1, generator=generator)
        a, _, c = coupling(x0, x1, labels, generator=generator)
        for label, rows_ in seen.items():
            rows_.append(a[c == label])
    return {
        label: (torch.cat(r).mean().item(), torch.cat(r).var().item()) for label, r in seen.items()
    }


def test_a_plan_blind_to_labels_skews_the_base_given_a_label():
    law = base_given_label(couplings.optimal_transport())
    # Each label takes its half of the normal: mean -+ sqrt(2 / pi), variance 1 - 2 / pi; the halves
    # of a batch of 64 are cut within 0.1 of zero.
    for label, (mean, variance) in law.items():
        assert mean == pytest.approx((2 * label - 1) * math.sqrt(2 / math.pi), abs=0.1)
        assert variance == pytest.approx(1 - 2 / math.pi, abs=0.1)


@pytest.mark.parametrize(
    "inner", ["optimal_transport", "independent", couplings.schroedinger_bridge(1.0)], ids=str
)
def test_within_labels_the_base_given_a_label_stays_normal(inner):
    law = base_given_label(couplings.conditional(inner))
    count = 60 * 32
    for mean, variance in law.values():  # five standard errors; a bridge's draws repeat rows
        assert mean == pytest.approx(0.0, abs=5 / math.sqrt(count))
        assert variance == pytest.approx(1.0, abs=5 * math.sqrt(2 / count))


def test_a_heavy_label_cost_is_pairing_within_labels_and_a_light_one_is_none():
    x0, x1 = torch.randn(40, 3, generator=seeded(1)), torch.randn(40, 3, generator=seeded(2))
    labels = torch.arange(40) % 4
    within = couplings.conditional()(x0, x1, labels)[0]
    assert torch.equal(couplings.conditional(weight=1e4)(x0, x1, labels)[0], within)
    blind = couplings.optimal_transport()(x0, x1)[0]
    assert torch.equal(couplings.conditional(weight=1e-6)(x0, x1, labels)[0], blind)
    vectors = torch.nn.functional.one_hot(labels).float() * math.sqrt(0.5)
    same = couplings.conditional(weight=7.0)
    assert torch.equal(same(x0, x1, labels)[0], same(x0, x1, vectors)[0])


@quick
@given(hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(-2, 2)))
def test_pairs_are_of_one_label(labels):
    labels = torch.from_numpy(labels)
    x0, x1 = (torch.randn(len(labels), 2, generator=seeded(k)) for k in (1, 2))
    a, _, c = couplings.conditional()(x0, x1, labels)
    assert torch.equal(labels[found(a, x0)], c)  # row i of x0 has the label of row i
