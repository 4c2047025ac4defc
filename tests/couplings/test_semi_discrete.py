"""The plan between a continuous base and a data set: its fit, its marginals, its labels."""

import copy
import math
import pickle

import pytest
import torch

from interp import couplings
from interp.errors import OptionError
from interp.noise import normal_like


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ring(count=40):
    """Eight clusters around a circle, far from the base."""
    angle = torch.arange(count) % 8 * (math.pi / 4)
    centres = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    return centres + 0.3 * torch.randn(count, 2, generator=seeded(1)), torch.arange(count) % 8 % 2


def total_variation(coupling, rows):
    """Of the data marginal, and what counting alone would show."""
    count = len(coupling.data)
    frequencies = coupling.frequencies(rows)
    assert frequencies.sum().item() == pytest.approx(1.0)
    return 0.5 * (frequencies - 1 / count).abs().sum().item(), 0.4 * math.sqrt(count / rows)


def fitted(steps=600, **options):
    data, labels = ring()
    return couplings.semi_discrete(data, labels, **options).fit(steps, progress=False)


@pytest.fixture(scope="module")
def plain():
    return fitted()


def test_on_a_line_the_cells_are_equal_shares_in_order():
    data = torch.tensor([[3.0], [-1.0], [0.5], [10.0]], dtype=torch.float64)
    coupling = couplings.semi_discrete(data).fit(4000, progress=False)
    x0 = torch.linspace(-3, 3, 2001, dtype=torch.float64)[:, None]
    met = coupling.match(x0)
    assert met.unique_consecutive().tolist() == [1, 2, 0, 3]  # monotone, each cell one interval
    edges = x0[:-1][met.diff() != 0, 0]
    # The quartiles of the normal; a fit of 4000 steps of 256 draws knows them to about 1e-2.
    wanted = torch.special.ndtri(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    torch.testing.assert_close(edges, wanted, rtol=0, atol=0.04)


def test_fitting_evens_out_the_data_and_the_base_is_exact(plain):
    data, labels = ring()
    before, _ = total_variation(fitted(1), 20000)
    after, counting = total_variation(plain, 20000)
    assert before > 0.3
    assert after < counting + 0.05
    x0 = torch.randn(100, 2, generator=seeded(2))
    a, b, c = plain(x0, torch.zeros(100, 2), labels=torch.zeros(100))
    assert a is x0
    j = plain.match(x0)
    assert torch.equal(b, data[j])
    assert torch.equal(c, labels[j])


def test_it_costs_no_more_than_the_exact_plan_of_a_batch(plain):
    data, _ = ring()
    rows = 400
    x0 = torch.randn(rows, 2, generator=seeded(3))
    ours = (x0 - plain(x0, x0)[1]).square().sum(1).mean()
    # The exact plan of this sample onto the data, each met ten times, is bound to even shares that
    # the sample itself has only to 1 / sqrt(rows): it can cost no less but for that.
    a, b = couplings.optimal_transport()(x0, data.repeat(10, 1))
    batch = (a - b).square().sum(1).mean()
    assert ours < batch * 1.02
    assert ours > batch * 0.9


def test_with_entropy_the_shares_are_even_too():
    coupling = fitted(600, reg=1.0)
    error, counting = total_variation(coupling, 20000)
    assert error < counting + 0.05
    x0 = torch.zeros(2000, 2)
    met = coupling.match(x0, generator=seeded())
    assert len(met.unique()) > 5  # one point of the base, spread over several of the data
    assert torch.equal(met, coupling.match(x0, generator=seeded()))
    score = 2 * (x0[:1] @ (coupling.data - coupling.data.mean(0)).T) + coupling.average
    plan = torch.softmax(score[0].double(), 0)
    counts = torch.bincount(met, minlength=40) / 2000
    # Five standard errors of a frequency of 2000.
    assert ((counts - plan).abs() < 5 * (plan / 2000).sqrt() + 1e-9).all()


def test_within_labels_each_label_has_the_whole_base(plain):
    coupling = fitted(600, within_labels=True)
    data, labels = ring()
    x0, asked = torch.randn(4000, 2, generator=seeded(4)), torch.arange(4000) % 2
    _, b, c = coupling(x0, x0, asked)
    assert torch.equal(c, asked)
    for label in (0, 1):
        j = coupling.match(x0, torch.full((4000,), label))
        assert (labels[j] == label).all()
        counts = torch.bincount(j, minlength=40)[labels == label] / 4000
        assert 0.5 * (counts - 1 / 20).abs().sum() < 0.4 * math.sqrt(20 / 4000) + 0.06
    assert set(b.unique(dim=0).tolist()[0]) <= set(data.flatten().tolist())


def test_a_fit_goes_on_where_it_stopped():
    whole = fitted(30)
    data, labels = ring()
    first = fitted(10)
    for copied in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert torch.equal(copied.fit(30, progress=False).average, whole.average)
    loaded = couplings.semi_discrete(data, labels)
    loaded.load_state_dict(first.state_dict())
    assert torch.equal(loaded.fit(30, progress=False).average, whole.average)
    assert loaded.step == 30
    assert loaded.fit(20, progress=False).step == 30  # nothing left to do
    assert first.step == 10
    assert not torch.equal(fitted(30, seed=1).average, whole.average)


def test_a_fit_that_was_interrupted_is_whole(monkeypatch):
    coupling, count = fitted(5), []

    def base(rows, generator):
        count.append(0)
        if len(count) == 4:
            raise KeyboardInterrupt
        return normal_like(torch.empty(rows, 2), generator)

    coupling.base = base
    with pytest.raises(KeyboardInterrupt):
        coupling.fit(20, progress=False)
    coupling.base = None
    assert coupling.step == 8
    assert torch.equal(coupling.fit(12, progress=False).average, fitted(12).average)


def test_progress_is_seen(capsys):
    data, _ = ring()
    couplings.semi_discrete(data).fit(60)
    assert "60/60" in capsys.readouterr().err


def test_potentials_are_those_of_the_squared_distance(plain):
    data, _ = ring()
    x0 = torch.randn(200, 2, generator=seeded(5))
    reduced = torch.cdist(x0, data).square() - plain.potentials
    assert (reduced.argmin(1) == plain.match(x0)).float().mean() > 0.99  # but for rounding at edges


def test_other_bases_dtypes_and_shapes():
    data = torch.rand(12, 1, 2, 2, dtype=torch.float64, generator=seeded())

    def uniform(rows, generator):
        return 5 + torch.rand(rows, 1, 2, 2, dtype=torch.float64, generator=generator)

    coupling = couplings.semi_discrete(data, base=uniform).fit(1500, progress=False)
    error, counting = total_variation(coupling, 20000)
    assert error < counting + 0.05
    _, x1 = coupling(uniform(7, seeded()), data[:7])
    assert (x1.shape, x1.dtype) == ((7, 1, 2, 2), torch.float64)
    alone = couplings.semi_discrete(torch.ones(1, 2)).fit(2, progress=False)
    assert torch.equal(alone(torch.zeros(3, 2), torch.zeros(3, 2))[1], torch.ones(3, 2))
    same = couplings.semi_discrete(torch.ones(3, 2)).fit(2, progress=False)
    assert same.frequencies(10).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d, y: couplings.semi_discrete(d[:0]), "nothing to pair"),
        (lambda d, y: couplings.semi_discrete(d.int()), "dtype torch.int32"),
        (lambda d, y: couplings.semi_discrete(d / 0), "data is not finite in 40 of 40 rows"),
        (lambda d, y: couplings.semi_discrete(d, y[:3]), r"labels have shape \(3,\) for 40 rows"),
        (lambda d, y: couplings.semi_discrete(d, within_labels=True), "needs the labels"),
        (lambda d, y: couplings.semi_discrete(d, reg=0), "reg=0"),
        (lambda d, y: couplings.semi_discrete(d, lr=-1), "lr=-1"),
        (lambda d, y: couplings.semi_discrete(d, batch_size=0), "batch_size=0"),
        (lambda d, y: couplings.semi_discrete(d, seed=-1), "seed=-1"),
        (lambda d, y: couplings.semi_discrete(d).fit(0), "steps=0"),
        (lambda d, y: couplings.semi_discrete(d)(d, d), r"not fitted. Call fit\(steps\)"),
        (lambda d, y: couplings.semi_discrete(d, base=lambda n, g: torch.zeros(n, 3)), "base's x0"),
        (lambda d, y: fitted(1)(d.double(), d.double()), r"x0 has rows of.*float64.*Match them"),
        (lambda d, y: fitted(1)(d[:, :1], d[:, :1]), r"rows of shape \(1,\)"),
        (lambda d, y: fitted(1, within_labels=True)(d, d), "Call it with labels="),
        (lambda d, y: fitted(1, within_labels=True)(d, d, y + 1), "label 2, which no data have"),
        (lambda d, y: couplings.semi_discrete(d).load_state_dict({}), "the state lacks average"),
        (lambda d, y: couplings.semi_discrete(d[:9]).load_state_dict(fitted(1).state_dict()),
         "state is of 40 data and these are 9"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make(*ring())


def test_labels_are_asked_of_data_that_have_them():
    data, _ = ring()
    coupling = couplings.semi_discrete(data).fit(1, progress=False)
    assert coupling.config is None
    with pytest.raises(
        OptionError, match="data set of this coupling has none. Make it with labels="
    ):
        coupling(data, data, torch.zeros(40))
    x0 = data.clone()
    x0[3] = float("nan")
    with pytest.raises(OptionError, match=r"x0 is not finite in 1 of 40 rows, first in row 3"):
        coupling(x0, data)
