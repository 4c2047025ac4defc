"""What a family promises, whichever it is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adapters
import interp
from adapters.arguments import as_path, check_label
from adapters.protocol import Family, Objective, Optimizer
from interp import families
from interp.errors import DataError, OptionError, UnknownName, Unsupported


class Nothing(Family):
    """A family without a verb."""

    name = "nothing"


class Five(Family):
    """A user's own family: five lines."""

    def __init__(self, shape, network=None, lr=1e-2):
        super().__init__(shape, lr=lr)
        self.mean = nn.Parameter(torch.zeros(shape))

    def loss(self, batch):
        return (batch - self.mean).square().mean()


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(families, "_registered", {})
    return adapters.register


@pytest.mark.parametrize("verb", families.VERBS)
def test_a_missing_verb_names_who_has_it(verb):
    family, x = Nothing((2,)), torch.zeros(1, 2)
    assert family.supports(verb) is False
    with pytest.raises(Unsupported, match=f"nothing has no {verb}.*flow_matching"):
        family.sample(1) if verb == "sample" else getattr(family, verb)(x)


def test_an_unknown_verb_is_an_error_and_not_a_no():
    with pytest.raises(UnknownName, match="log_prob"):
        Nothing((2,)).supports("logprob")


@pytest.mark.parametrize("shape", [(), (0,), (1, -2), (1.5,), "ab"])
def test_a_shape_is_positive_integers(shape):
    with pytest.raises(OptionError, match="shape is"):
        Nothing(shape)


def test_a_config_that_json_cannot_hold_is_refused_at_once():
    with pytest.raises(OptionError, match="JSON"):
        Nothing((2,), {"network": torch.nn.Identity()})


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 400))
def test_stages_share_the_run_evenly_and_in_order(count, total):
    names = tuple("abcde"[:count])

    class Staged(Nothing):
        def stages(self):
            return names

    seen = [Staged((2,)).stage(step, total) for step in range(total)]
    assert seen == sorted(seen)  # in order
    sizes = [len(list(group)) for _, group in itertools.groupby(seen)]
    assert max(sizes) - min(sizes) <= 1 or total < count  # evenly, to one step


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10_000))
def test_the_rate_warms_up_falls_and_stays_positive(total):
    family = Nothing((2,), lr=0.5)
    rates = [family.optimizer(step, total).lr for step in range(0, total, max(1, total // 50))]
    assert all(0 < rate <= 0.5 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_a_family_in_five_lines_trains_by_name(registered):
    registered("five", Five)
    family = adapters.create("five", shape=(3,), lr=0.05)
    data = torch.full((64, 3), 2.0)
    trained = interp.train(family, data, 400, progress=False, ema=0.0)
    # The only minimum is the data's own value; 400 steps of at most 0.05 reach it from 0.
    torch.testing.assert_close(trained.family.mean.data, torch.full((3,), 2.0), atol=1e-2, rtol=0)


class Pair(Family):
    """Two optimisers in turn, as a generator and its critic have."""

    name = "pair"

    def __init__(self, shape, network=None):
        super().__init__(shape)
        self.a, self.b = (nn.Parameter(torch.zeros(())) for _ in range(2))
        self.steps = []

    def objectives(self, step, total):
        sgd = Optimizer(1.0, "SGD", clip=None)
        yield Objective("a", [self.a], lambda batch: (self.a - 1).square() / 2 + self.b, sgd)
        self.steps.append((self.a.item(), self.b.item()))  # after the step of "a"
        for _ in range(2):  # one objective twice in a step: five critic steps, say
            loss = {"fit": (self.b - self.a).square() / 4, "zero": 0 * self.b}
            yield Objective("b", [self.b], lambda batch, terms=loss: terms, sgd)


def test_each_objective_sees_the_step_before_it_and_moves_only_its_own():
    family = Pair((1,))
    interp.train(family, torch.zeros(4, 1), 1, progress=False, ema=0.0)
    assert family.steps == [(1.0, 0.0)]  # a reached 1 in one step of rate 1, and b stayed
    assert family.a.item() == 1.0
    # b' = b + (a - b) / 2, twice: the second loss was built from the b of its own turn.
    assert family.b.item() == 0.75


def test_an_objective_that_can_move_nothing_is_refused():
    class Detached(Five):
        def loss(self, batch):
            return super().loss(batch).detach()

    with pytest.raises(OptionError, match="does not depend on any"):
        interp.train(Detached((1,)), torch.zeros(4, 1), 1, progress=False)


def test_parameters_that_a_step_does_not_use_stay_as_they_are():
    family = Five((1,))
    family.idle = nn.Parameter(torch.ones(3))
    interp.train(family, torch.zeros(4, 1), 3, progress=False)
    assert torch.equal(family.idle.data, torch.ones(3))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"y": torch.zeros(2, 3)}, "no 'x'"),
        (torch.zeros(2, 3, dtype=torch.int64), "floating"),
        ([1.0], "list"),
        (torch.zeros(2, 4), r"\(4,\).*\(3,\)"),
        ({"x": torch.zeros(2, 3), "label": torch.zeros(2)}, "integer"),
        ({"x": torch.zeros(2, 3), "label": torch.zeros(3, dtype=torch.int64)}, "integer"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(batch, message):
    with pytest.raises(DataError, match=message):
        Five((3,)).split(batch)


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        (10, 10, "from 0 to 9"),
        (-1, 10, "from 0 to 9"),
        ([0.5, 1.0], 10, "integer"),
        ([0, 1, 2], 10, "2 rows"),
        (0, None, "without labels"),
    ],
)
def test_a_label_that_makes_no_sense_is_refused(label, classes, message):
    with pytest.raises(OptionError, match=message):
        check_label(label, 2, classes, torch.device("cpu"))


def test_one_label_stands_for_all_rows():
    assert check_label(3, 4, 10, torch.device("cpu")).tolist() == [3, 3, 3, 3]


def test_a_path_goes_by_name_config_or_itself():
    path = interp.schedules.trigonometric()
    assert as_path(path) is path
    assert as_path("trigonometric").config == as_path(path.config).config == path.config
    with pytest.raises(UnknownName, match="linear"):
        as_path("liner")
    with pytest.raises(OptionError, match="path of the user's own"):
        as_path(None)


@pytest.mark.parametrize(
    "name", ["rectified_flow", "schroedinger_bridge", "jko", "energy_matching"]
)
def test_rates_of_families_with_phases_are_warmed_up_and_never_negative(name):
    """Whatever share of the run a phase has; where it begins anew the rate does."""
    options = {"method": "dsbm"} if name == "schroedinger_bridge" else {}
    family = adapters.create(name, (2,), **options)
    rates = [next(iter(family.objectives(step, 200))).optimizer.lr for step in range(200)]
    assert all(0 < rate <= family.lr for rate in rates[:-1])
