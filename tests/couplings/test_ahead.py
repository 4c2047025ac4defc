"""Batches coupled ahead, by themselves and in training."""

import itertools
import random
import time

import pytest
import torch

import adapters
import interp
from interp import couplings
from interp.errors import DataError, OptionError

X = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
LABELS = torch.arange(40) % 3


def stream(batches=6, rows=8):
    for k in range(batches):
        index = torch.arange(rows) + k * 5 % 32
        yield {"x": X[index], "label": LABELS[index], "row": index, "note": "kept"}


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.mark.parametrize(
    "coupling", [None, *(couplings.from_config(name) for name in couplings.names())], ids=str
)
def test_every_column_goes_with_its_points(coupling):
    coupling = coupling or "optimal_transport"
    for batch, paired in zip(stream(), couplings.ahead(coupling, stream()), strict=True):
        assert paired["x0"].shape == paired["x"].shape == batch["x"].shape
        assert torch.equal(X[paired["row"]], paired["x"])
        assert torch.equal(LABELS[paired["row"]], paired["label"])
        assert paired["note"] == "kept"


def test_the_same_seed_gives_the_same_pairs_whatever_the_timing_the_depth_and_the_start():
    class Slow:
        """The coupling that it is given, at its own pace."""

        name = "slow"

        def __call__(self, x0, x1, labels=None, generator=None):
            time.sleep(random.random() * 0.01)
            return couplings.independent()(x0, x1, labels, generator)

    def plain():
        return ({k: b[k] for k in ("x", "label")} for b in stream())

    class Registered(Slow, couplings.Coupling):
        config = None

    slow = Registered()
    wanted = list(couplings.ahead("independent", plain(), 0, seed=5))
    for depth in (0, 1, 4):
        torch.manual_seed(depth)  # the caller's generator is no matter
        before = torch.get_rng_state()
        for mine, right in zip(couplings.ahead(slow, plain(), depth, seed=5), wanted, strict=True):
            same(mine, right)
        assert torch.equal(torch.get_rng_state(), before)
    later = couplings.ahead(slow, itertools.islice(plain(), 3, None), seed=5, start=3)
    for mine, right in zip(later, wanted[3:], strict=True):
        same(mine, right)
    other = next(couplings.ahead(slow, plain(), seed=6))
    assert not torch.equal(other["x0"], wanted[0]["x0"])


def test_bases_and_forms_of_batches():
    x0 = torch.zeros_like(X[:8])
    (given,) = couplings.ahead("given", [{"x": X[:8], "x0": x0}])
    assert torch.equal(given["x0"], x0)
    (drawn,) = couplings.ahead("given", [X[:8]], base=lambda x1, generator: x1 + 1)
    assert torch.equal(drawn["x0"], X[:8] + 1)
    (pair,) = couplings.ahead("given", [(X[:8], LABELS[:8])])
    assert torch.equal(pair["label"], LABELS[:8])
    assert pair["x0"].dtype is X.dtype
    with pytest.raises(DataError, match="a batch is a str"):
        next(couplings.ahead("given", ["x"]))


def test_what_the_coupling_refuses_is_raised_by_the_loop_that_takes_the_batches():
    bad = X[:8].clone()
    bad[2] = float("nan")
    paired = couplings.ahead("optimal_transport", [X[:8], bad, X[:8]])
    next(paired)
    with pytest.raises(OptionError, match=r"x1 is not finite in 1 of 8 rows, first in row 2"):
        next(paired)
    for options in ({"depth": -1}, {"seed": -1}, {"start": 1.5}):
        with pytest.raises(OptionError, match=next(iter(options))):
            couplings.ahead("given", [X], **options)


def test_semi_discrete_carries_points_and_labels_alone():
    fitted = couplings.semi_discrete(X, LABELS, batch_size=64).fit(5, progress=False)
    (paired,) = couplings.ahead(fitted, [(X[:8], LABELS[:8])])
    assert paired.keys() == {"x0", "x", "label"}
    with pytest.raises(OptionError, match="cannot carry note, row"):
        next(couplings.ahead(fitted, stream()))


# In training


def family(**options):
    torch.manual_seed(0)
    options = {"width": 8, "classes": 3, "coupling": "optimal_transport", **options}
    return adapters.create("flow_matching", shape=(1, 4, 4), **options)


def train(model, steps, out=None, **options):
    data = {"x": X, "label": LABELS}
    return interp.train(
        model, data, steps, out, batch_size=16, save_every=4, progress=False, **options
    )


@pytest.mark.parametrize("spare", [True, False])
def test_training_takes_the_plans_that_were_made_ahead(monkeypatch, spare):
    import threading

    seen = []
    monkeypatch.setattr("interp.training.loop.spare_core", lambda device: spare)
    pairs = couplings.BatchCoupling.match

    def match(self, x0, x1, labels=None, generator=None):
        seen.append((threading.current_thread().name.startswith("interp-ahead"), len(x1)))
        return pairs(self, x0, x1, labels, generator)

    monkeypatch.setattr(couplings.BatchCoupling, "match", match)
    trained = train(family(), 7)
    assert seen == [(spare, 16)] * 7  # a plan a step, in a thread of its own where it has a core
    monkeypatch.setattr("interp.training.loop.spare_core", lambda device: not spare)
    assert train(family(), 7).losses == trained.losses


@pytest.mark.parametrize(
    "coupling", ["optimal_transport", {"name": "conditional", "coupling": {"name": "partial"}}]
)
def test_a_run_stopped_and_resumed_gives_the_same_numbers(tmp_path, coupling):
    whole = train(family(coupling=coupling), 12, tmp_path / "whole")

    class KilledError(Exception):
        pass

    model, count = family(coupling=coupling), itertools.count()
    loss = model.loss

    def dying(batch, generator=None):
        if next(count) == 6:
            raise KilledError
        return loss(batch, generator)

    model.loss = dying
    with pytest.raises(KilledError):
        train(model, 12, tmp_path / "broken")
    resumed = train(family(coupling=coupling), 12, tmp_path / "broken", resume=True)
    assert resumed.losses == whole.losses[4:]
    for name, tensor in resumed.family.state_dict().items():
        assert torch.equal(tensor, whole.family.state_dict()[name])


def test_a_plan_that_fails_stops_the_run_with_the_couplings_own_words():
    model = family(coupling={"name": "schroedinger_bridge", "sigma": 1e-9})
    with pytest.raises(OptionError, match="sigma=1e-09 is too small"):
        train(model, 3)


def test_the_loss_of_a_prepared_batch_is_that_of_its_pairs():
    model = family()
    batch = {"x": X[:16], "label": LABELS[:16]}
    prepared = model.prepare(batch, torch.Generator().manual_seed(1))
    expected = couplings.optimal_transport()(prepared["x0"], prepared["x"])[0]
    assert torch.equal(prepared["x0"], expected)  # optimal already
    assert model.prepare(prepared, torch.Generator()) is prepared
    assert family(coupling=None).prepares == 0
    again = adapters.create("flow_matching", **model.config)
    assert again.regression.coupling == model.regression.coupling
