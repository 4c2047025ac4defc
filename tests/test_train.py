"""The trainer: whatever happens to a run, its numbers are those of the unbroken one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import adapters
import interp
from adapters.protocol import Family
from interp.errors import (
    CheckpointError,
    DataError,
    OptionError,
    RunExists,
    TrainingError,
    UnknownName,
)
from interp.training import checkpoint as files
from interp.training import load
from interp.training.ema import Average

DATA = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def family(**config):
    torch.manual_seed(0)
    return adapters.create("flow_matching", shape=(4,), classes=3, **{"width": 8, **config})


def train(model, steps, out=None, **options):
    data = {"x": DATA, "label": LABELS}
    given = {"batch_size": 16, "save_every": 4, "progress": False, **options}
    return interp.train(model, data, steps, out, **given)


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["stage"], row["loss"]) for row in rows]


def same_run(a, b):
    assert losses(a) == losses(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    last = [files.load_last(folder / "checkpoints") for folder in (a, b)]
    for part, tensors in last[0].parts.items():
        assert tensors.keys() == last[1].parts[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, last[1].parts[part][name]), (part, name)


# A run, and the same run broken


def test_a_run_folder_holds_what_it_promises(tmp_path):
    trained = train(family(), 10, tmp_path / "run", about={"name": "toy"})
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "model.safetensors", "checkpoints", "samples.png",
        "loss.png",
    }  # fmt: skip
    steps = [p.name for p in files.found(tmp_path / "run" / "checkpoints")]
    assert steps == ["step-00000004", "step-00000008", "step-00000010"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["schema"], config["family"]) == (1, "flow_matching")
    assert config["data"] == {"label_frequencies": [14 / 40, 13 / 40, 13 / 40], "name": "toy"}
    assert [step for step, _, _ in losses(tmp_path / "run")] == list(range(1, 11))
    assert [loss for _, _, loss in losses(tmp_path / "run")] == trained.losses
    again, _ = load(tmp_path / "run")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, trained.family.state_dict()[name])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(7)  # whatever the caller's generator has seen does not matter
        train(family(), 6, tmp_path / name, seed=seed)
    same_run(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


class KilledError(Exception):
    """Stands for a kill between two steps."""


def test_the_callers_generator_is_left_alone(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    model = family()
    torch.manual_seed(5)
    train(model, 3, tmp_path / "run")
    assert torch.equal(torch.rand(3), wanted)


@settings(deadline=None, max_examples=4)
@given(st.lists(st.integers(1, 11), min_size=1, max_size=3))
def test_a_run_stopped_anywhere_resumes_to_the_same_numbers(tmp_path_factory, stops):
    folder = tmp_path_factory.mktemp("runs")
    train(family(), 12, folder / "whole")
    for k, stop in enumerate(stops):
        model, count = family(), 0
        evaluate = model.loss

        def dying(batch, generator=None, evaluate=evaluate, stop=stop):
            nonlocal count
            count += 1
            if count > stop:
                raise KilledError
            return evaluate(batch, generator)

        model.loss = dying
        try:
            train(model, 12, folder / "broken", resume=k > 0)
        except KilledError:
            continue
        break  # it came to the end
    else:
        train(family(lr=2e-3), 12, folder / "broken", resume=True)
    same_run(folder / "whole", folder / "broken")


SCRIPT = """
import sys, time, torch, adapters, interp
torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[2]))  # the weights of a resumed run come from its checkpoint
family = adapters.create("flow_matching", shape=(1, 8, 8), width=8, classes=3)
g = torch.Generator().manual_seed(0)
data = {"x": torch.randn(64, 1, 8, 8, generator=g).clamp(-1, 1), "label": torch.arange(64) % 3}
options = {"batch_size": 16, "save_every": 5, "progress": False}
if sys.argv[3:] == ["stall"]:  # so that it can't end before it is killed
    family.after_step = lambda step, total: time.sleep(60 * (step > 30))
interp.train(family, data, 40, sys.argv[1], resume=sys.argv[3:] == ["resume"], **options)
"""


def wait_for_step(process, folder, step):
    """Wait until the run in ``folder`` has had some steps, or has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.002)


def test_kill_nine_and_resume(tmp_path, monkeypatch):
    def start(folder, seed, *more):
        command = [sys.executable, "-c", SCRIPT, str(folder), str(seed), *more]
        return subprocess.Popen(command)

    broken = start(tmp_path / "broken", 0, "stall")
    wait_for_step(broken, tmp_path / "broken", 17)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    resumed = start(tmp_path / "broken", 1, "resume")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "whole"), "0"])
    exec(SCRIPT, {})  # the unbroken run, in this process
    assert resumed.wait() == 0
    same_run(tmp_path / "whole", tmp_path / "broken")


def test_more_steps_may_be_asked_for_when_resuming(tmp_path):
    train(family(), 4, tmp_path / "run")
    assert train(family(), 6, tmp_path / "run", resume=True).step == 6
    done = train(family(), 6, tmp_path / "run", resume=True)  # nothing is left to do
    assert (done.step, done.losses) == (6, [])


def test_half_a_line_of_metrics_is_cut_off(tmp_path):
    train(family(), 8, tmp_path / "whole")
    train(family(), 4, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.')
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["training"]["steps"] = 8
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    train(family(), 8, tmp_path / "run", resume=True)
    assert [step for step, _, _ in losses(tmp_path / "run")] == list(range(1, 9))


# Folders that hold something already


def test_a_run_is_not_written_over_unasked(tmp_path):
    train(family(), 2, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunExists, match=r"--resume.*--overwrite"):
        train(family(), 3, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    train(family(), 3, tmp_path, overwrite=True)
    assert [step for step, _, _ in losses(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resuming_asks_for_the_run_that_was_begun(tmp_path):
    train(family(), 2, tmp_path / "run")
    for changed, message in (
        ({"seed": 1}, "seed=0, not 1"),
        ({"batch_size": 8}, "batch_size=16, not 8"),
        ({"ema": 0.5}, "ema=0.999, not 0.5"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(family(), 3, tmp_path / "run", resume=True, **changed)
    with pytest.raises(CheckpointError, match="width=8, not 16"):
        train(family(width=16), 3, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="family 'flow_matching', not 'Toy'"):
        train(Toy((4,)), 3, tmp_path / "run", resume=True)
    with pytest.raises(OptionError, match="Choose one"):
        train(family(), 3, tmp_path / "run", resume=True, overwrite=True)
    with pytest.raises(OptionError, match="out="):
        train(family(), 3, resume=True)


def test_a_run_killed_before_it_began_resumes_from_the_beginning(tmp_path):
    assert train(family(), 2, tmp_path / "absent", resume=True).step == 2
    (tmp_path / "empty").mkdir()
    assert train(family(), 2, tmp_path / "empty", resume=True).step == 2


def test_a_damaged_run_names_what_is_damaged(tmp_path):
    train(family(), 8, tmp_path)
    last = files.found(tmp_path / "checkpoints")[-1] / "model.safetensors"
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"damaged.*step-00000004, is good: delete"):
        train(family(), 12, tmp_path, resume=True)
    model = tmp_path / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": 1, "family": "flow_matching"}')
    with pytest.raises(CheckpointError, match="lacks config"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no run in"):
        load(tmp_path / "absent")


def test_weights_that_do_not_fit_are_named(tmp_path):
    train(family(), 2, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["width"] = 16
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"do not fit this flow_matching.*size mismatch"):
        load(tmp_path)


def test_a_network_of_the_users_own_is_asked_for_when_loading(tmp_path):
    def own():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = own()

        def forward(self, t, x):
            return self.body(x)

    model = adapters.create("flow_matching", shape=(4,), network=Net())
    trained = interp.train(model, DATA, 3, tmp_path, progress=False)
    with pytest.raises(OptionError, match="network of the user's own"):
        load(tmp_path)
    again, _ = load(tmp_path, network=Net())
    assert torch.equal(again.sample(2, seed=0), trained.family.sample(2, seed=0))


# What goes wrong on the way


class Toy(Family):
    """One number, whose loss and gradient can be made to fail."""

    verbs: ClassVar = {"loss": "exact"}

    def __init__(self, shape, network=None, bad=None, at=10**9):
        super().__init__(shape)
        self.w = nn.Parameter(torch.ones(()))
        self.bad, self.at, self.count = bad, at, 0

    def loss(self, batch, generator=None):
        self.count += 1
        x = batch["x"] if isinstance(batch, dict) else batch
        loss = (self.w - x.mean()).square()
        if self.count <= self.at:
            return loss
        if self.bad == "gradient":  # sqrt has an infinite slope at zero
            return (self.w * 0).sqrt()
        return {"fit": loss, "extra": loss * float(self.bad)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nan", r"loss 'loss\.fit' is|loss 'loss\.extra' is nan at step 6"),
        ("inf", r"loss 'loss\.extra' is inf at step 6"),
        ("gradient", r"gradient of 'loss' is (nan|inf) at step 6"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, bad, message):
    with pytest.raises(TrainingError, match=message):
        train(Toy((4,), bad=bad, at=6), 12, tmp_path)
    last = files.load_last(tmp_path / "checkpoints")
    assert last.step == 4
    assert all(t.isfinite().all() for t in last.parts["model"].values())
    assert len(losses(tmp_path)) == 6


@pytest.mark.parametrize("what", ["fsync", "write"])
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch, what):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    model, home = Toy((4,)), os if what == "fsync" else files
    name = "fsync" if what == "fsync" else "write_synced"
    evaluate = model.loss

    def filling(batch, generator=None):
        if model.count == 6:
            monkeypatch.setattr(home, name, full)
        return evaluate(batch, generator)

    model.loss = filling
    with pytest.raises(TrainingError, match=r"No space left.*step-00000004, is whole.*--resume"):
        train(model, 12, tmp_path)
    monkeypatch.undo()
    assert files.load_last(tmp_path / "checkpoints").step == 4
    assert train(Toy((4,)), 12, tmp_path, resume=True).step == 12


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/run cannot be written.*Choose another folder"):
        train(family(), 2, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"save_every": 0}, "save_every is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, options, message):
    given = {"steps": 3, "out": tmp_path / "run", **options}
    with pytest.raises(OptionError, match=message):
        train(family(), given.pop("steps"), given.pop("out"), **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 4), "no rows"),
        (torch.zeros(3, 4, dtype=torch.uint8), "uint8"),
        ({"y": DATA}, "no 'x'"),
        ({"x": DATA, "label": LABELS[:3]}, "Match them"),
        ({"x": DATA, "label": LABELS - 1}, "a label is -1"),
        (DATA.clone().index_fill(0, torch.tensor([7]), float("nan")), "first in row 7"),
        ("digits", "data is a str"),
        ([{"z": 1}], "a batch is a dict"),
        (torch.zeros(5, 3), r"points of shape \(3,\)"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        interp.train(Toy2((4,)), data, 2, progress=False)


class Toy2(Toy):
    """As a family should, it looks at its batch."""

    def loss(self, batch, generator=None):

        return (self.w - self.split(batch)[0].mean()).square()


def test_what_is_no_family_is_refused():
    class Bare(Family):
        pass

    with pytest.raises(OptionError, match=r"not an nn\.Module"):
        interp.train(object(), DATA, 1)
    with pytest.raises(OptionError, match="no parameters"):
        interp.train(Bare((4,)), DATA, 1)

    class Odd(Toy):
        def optimizer(self, step, total):
            from adapters.protocol import Optimizer

            return Optimizer(1.0, "AdamWW")

    with pytest.raises(UnknownName, match="AdamW"):
        interp.train(Odd((4,)), DATA, 1, progress=False)


# The average


def test_the_average_is_the_weighted_mean_of_the_weights():
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    average, wanted = Average(module, 0.9), 0.0
    for step in range(1, 200):
        nn.init.constant_(module.weight, step)
        average.update(step)
        m = min(0.9, (1 + step) / (10 + step))
        wanted = m * wanted + (1 - m) * step
    # Float64, 200 roundings of numbers up to 200.
    assert average.weights["weight"].item() == pytest.approx(wanted, rel=1e-12)
    # In the long run it trails a ramp by decay / (1 - decay) = 9 steps.
    assert average.weights["weight"].item() == pytest.approx(199 - 9, abs=1e-3)


def test_the_model_file_holds_the_average_and_the_checkpoint_the_weights(tmp_path):
    train(family(), 6, tmp_path)
    last = files.load_last(tmp_path / "checkpoints")
    model = load_file(tmp_path / "model.safetensors")
    for name, tensor in last.parts["average"].items():
        assert torch.equal(model[name], tensor)
    assert any(not torch.equal(model[n], t) for n, t in last.parts["model"].items())


def test_without_averaging_the_model_is_the_weights(tmp_path):
    train(family(), 6, tmp_path, ema=0.0)
    last = files.load_last(tmp_path / "checkpoints")
    model = load_file(tmp_path / "model.safetensors")
    for name, tensor in last.parts["model"].items():
        # a + (p - a) is p to one rounding.
        torch.testing.assert_close(model[name], tensor, atol=1e-7, rtol=1e-6)


class Phases(Toy):
    """Two phases, a number that the first moves and the second freezes, and one for the second."""

    def __init__(self, shape, network=None):
        super().__init__(shape)
        self.v = nn.Parameter(torch.zeros(()))
        self.seen = []

    def stages(self):
        return ("first", "second")

    def objectives(self, step, total):
        from adapters.protocol import Objective, Optimizer

        sgd = Optimizer(0.1, "SGD", clip=None)
        first = self.stage(step, total) == "first"
        self.w.requires_grad_(first)
        name, p = ("first", self.w) if first else ("second", self.v)
        yield Objective(name, [p], lambda batch: (p - 3).square(), sgd)

    def after_stage(self, step, total):
        self.seen.append((step, self.w.item()))


def test_a_phase_ends_as_a_run_does_with_the_averaged_weights():
    alone, both = Phases((4,)), Phases((4,))
    alone.stages = lambda: ("first",)
    wanted = interp.train(alone, DATA, 5, progress=False, ema=0.9).family.w.item()
    interp.train(both, DATA, 10, progress=False, ema=0.9)
    assert both.seen == [(4, wanted)]  # told once, at the last step of the first phase
    assert both.w.item() == wanted  # frozen since: its average does not trail
    assert both.v.item() > 0


def test_statistics_of_normalisation_layers_are_averaged_and_other_buffers_are_not():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.register_buffer("phase", torch.zeros(()))
    average = Average(module, 0.5)
    for step in range(1, 40):
        module[1].running_mean.fill_(step)
        module.phase.fill_(step)
        average.update(step)
    state = average.state()
    # An average of decay 1/2 trails a ramp by decay / (1 - decay) = 1 step.
    assert state["1.running_mean"].tolist() == pytest.approx([38, 38], abs=1e-3)
    assert (state["phase"], state["1.num_batches_tracked"]) == (39, 0)
    again = Average(module, 0.5)
    again.load(average.weights)
    assert torch.equal(again.state()["1.running_mean"], state["1.running_mean"])
