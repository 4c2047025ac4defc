"""The command line: what it writes, what it says, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from interp import cli
from interp.training import data

TINY = ["--batch-size", "16", "--set", "width=8"]


def run(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a small conditional model on the digits."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert run("train", "flow_matching", "--data", "digits", "--steps", 6, "--out", out, *TINY) == 0
    return out


def said(capsys):
    """What went to stderr, on one line."""
    return " ".join(capsys.readouterr().err.split())


# What works


def test_training_leaves_a_run(trained):
    names = {p.name for p in trained.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "model.safetensors", "checkpoints", "samples.png",
        "loss.png",
    }  # fmt: skip
    config = json.loads((trained / "config.json").read_text())
    assert config["config"] | {"classes": 10, "levels": 17, "width": 8} == config["config"]
    assert config["data"]["name"] == "digits"
    for name in ("samples.png", "loss.png"):
        with Image.open(trained / name) as image:
            image.verify()


def test_sampling_writes_a_grid_and_an_array(trained, tmp_path):
    def samples(name, *more):
        given = [
            "sample",
            trained,
            "-n",
            5,
            "--solver",
            "heun",
            "--steps",
            3,
            "--out",
            tmp_path / name,
        ]
        assert run(*given, *more) == 0
        with np.load(tmp_path / name / "samples.npz") as arrays:
            return arrays["samples"], arrays["label"]

    x, label = samples("a")
    assert (x.shape, x.dtype) == ((5, 1, 8, 8), np.float32)
    assert np.abs(x).max() <= 1
    with Image.open(tmp_path / "a" / "grid.png") as image:
        image.verify()
    again, same = samples("b", "--batch-size", 2)
    np.testing.assert_array_equal(label, same)
    # Other batches, other orders of sums: float32, six evaluations.
    np.testing.assert_allclose(again, x, atol=1e-5)
    other, _ = samples("c", "--seed", 1)
    assert not np.allclose(other, x)
    _, fixed = samples("d", "--label", 7, "--guidance", 2.0)
    assert fixed.tolist() == [7] * 5
    # What sampling writes, --data reads: an array "samples", in [-1, 1], with labels.
    assert data.load(str(tmp_path / "a" / "samples.npz")).shape == (1, 8, 8)


@pytest.mark.parametrize(
    "solver", [["dopri5"], ["rk4"], ["euler_maruyama", "--steps", "4", "--diffusion", "0.3"]]
)
def test_every_kind_of_solver_samples(trained, tmp_path, solver):
    assert run("sample", trained, "-n", 2, "--out", tmp_path, "--solver", *solver) == 0


def test_a_run_goes_on_where_it_stopped(tmp_path):
    def train(steps, name, *more):
        given = ["train", "flow_matching", "--data", "digits", "--steps", steps]
        return run(*given, "--out", tmp_path / name, *TINY, "--save-every", 2, *more)

    assert train(4, "a") == 0
    assert train(6, "a", "--resume") == 0
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert train(3, "a", "--overwrite") == 0


def test_evaluation_gives_nats_and_bits(trained, capsys):
    assert run("evaluate", trained, "-n", 3, "--tolerance", 1e-2) == 0
    assert "bits/dim, over 3 rows" in " ".join(capsys.readouterr().out.split())


def test_training_on_files_and_folders(tmp_path):
    rows = np.random.default_rng(0).uniform(-1, 1, (12, 3)).astype(np.float32)
    np.savez(tmp_path / "points.npz", x=rows)
    out = tmp_path / "points"
    given = ["train", "flow_matching", "--steps", 2, *TINY, "--data"]
    assert run(*given, tmp_path / "points.npz", "--out", out) == 0
    assert run("sample", out, "-n", 3, "--out", tmp_path / "s") == 0
    with np.load(tmp_path / "s" / "samples.npz") as arrays:
        assert arrays["samples"].shape == (3, 3)
    for k in range(4):
        (tmp_path / "images" / f"{k % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k * 60, 0, 0)).save(tmp_path / "images" / f"{k % 2}" / f"{k}.png")
    assert run(*given, tmp_path / "images", "--out", tmp_path / "run") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["shape"], config["classes"], config["levels"]) == ([3, 8, 8], 2, 256)


def test_the_list_shows_families_and_solvers(capsys):
    assert run("list") == 0
    shown = capsys.readouterr().out
    for word in ("flow_matching", "log_prob", "dopri5", "euler_maruyama", "torchdiffeq", "width"):
        assert word in shown


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "list"])
def test_help_shows_a_working_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    example = shown[shown.index("interp " + command, shown.index("Example:")) :]
    words = example.split("\n\n")[0].split("╭")[0].split()[1:]
    parsed = cli.parse(words)
    assert type(parsed).__name__.lower() == command


# What does not


FAMILY = ["train", "flow_matching", "--data", "digits", "--steps", "2"]
BAD = [
    (
        ["train", "flow_matchin", "--data", "digits", "--steps", "2", "--out", "OUT"],
        "flow_matching",
    ),
    (
        ["train", "flow_matching", "--data", "digit", "--steps", "2", "--out", "OUT"],
        "Did you mean digits",
    ),
    (["train", "flow_matching", "--data", "mnist", "--steps", "2", "--out", "OUT"], "--data-root"),
    ([*FAMILY[:-1], "0", "--out", "OUT"], "steps is 0"),
    ([*FAMILY, "--out", "OUT", "--batch-size", "0"], "batch_size is 0"),
    ([*FAMILY, "--out", "OUT", "--set", "widht=8"], "Did you mean width"),
    ([*FAMILY, "--out", "OUT", "--set", "width"], "--set width=64"),
    ([*FAMILY, "--out", "OUT", "--set", "path=lineer"], "Did you mean linear"),
    ([*FAMILY, "--out", "OUT", "--set", "width=big"], "width"),
    ([*FAMILY, "--out", "RUN"], "--resume"),
    ([*FAMILY, "--out", "RUN", "--resume", *TINY, "--seed", "9"], "seed=0, not 9"),
    ([*FAMILY, "--out", "/dev/null/run"], "Choose another folder"),
    ([*FAMILY, "--out", "OUT", "--device", "cuda:99"], "device"),
    ([*FAMILY, "--out", "OUT", "--device", "gpu"], "device"),
    (["sample", "OUT", "--out", "S"], "no run in"),
    (["sample", "RUN", "--out", "S", "-n", "0"], "-n is 0"),
    (["sample", "RUN", "--out", "S", "--solver", "huen"], "Did you mean heun"),
    (["sample", "RUN", "--out", "S", "--steps", "0"], "steps"),
    (["sample", "RUN", "--out", "S", "--label", "10"], "from 0 to 9"),
    (["sample", "RUN", "--out", "S", "--seed", "-1"], "seed"),
    (["sample", "RUN", "--out", "S", "--solver", "euler_maruyama"], "diffusion"),
    (["sample", "RUN", "--out", "/dev/null/s", "-n", "1", "--steps", "1"], "/dev/null"),
    (["evaluate", "RUN", "--data", "mnist"], "--data-root"),
    (["evaluate", "RUN", "--tolerance", "-1"], "rtol=-1"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_makes_no_sense_is_said_in_two_sentences(
    arguments, message, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv(data.ROOT, raising=False)
    places = {"OUT": tmp_path / "out", "RUN": trained, "S": tmp_path / "s"}
    assert run(*(places.get(a, a) for a in arguments)) == 2
    text = said(capsys)
    assert message in text
    assert text.startswith("error: ")
    assert "Traceback" not in text
    assert text.count(". ") >= 1  # what is wrong, and then what to do
    assert text[-1] in ".?)"
    assert not (tmp_path / "out").exists()


def test_debug_shows_where(tmp_path):
    from interp.errors import CheckpointError

    with pytest.raises(CheckpointError):
        run("sample", tmp_path, "--out", tmp_path / "s", "--debug")


def test_a_mistyped_flag_is_an_error_of_the_command_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run("train", "flow_matching", "--data", "digits", "--stpes", 2, "--out", "x")
    assert stop.value.code == 2
    assert "stpes" in capsys.readouterr().err


def test_a_damaged_model_and_another_schema_are_named(trained, tmp_path, capsys):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    model = copy / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-5])
    assert run("sample", copy, "--out", tmp_path / "s") == 2
    assert "model.safetensors is damaged" in said(capsys)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"schema": 7}))
    assert run("sample", copy, "--out", tmp_path / "s") == 2
    assert "schema 7" in said(capsys)


def test_ctrl_c_says_that_the_run_can_go_on(tmp_path):
    command = [
        sys.executable, "-m", "interp.cli", "train", "flow_matching", "--data", "digits",
        "--steps", "100000", "--out", str(tmp_path / "run"), *TINY,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ, text=True)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in text
    assert "Traceback" not in text
