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


def test_sampling_needs_no_data(tmp_path):
    """In a process of its own, with the file that was trained on gone and no data sets at hand."""
    file, out = tmp_path / "data.npz", tmp_path / "run"
    np.savez(file, x=np.random.default_rng(0).uniform(-1, 1, (20, 1, 8, 8)).astype(np.float32))
    assert run("train", "vae", "--data", file, "--steps", 2, "--out", out, *TINY) == 0
    file.unlink()
    code = (
        "import sys; sys.modules['sklearn'] = None;"
        "from interp import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    given = ["sample", str(out), "-n", "3", "--out", str(tmp_path / "s")]
    subprocess.run([sys.executable, "-c", code, *given], check=True)
    with np.load(tmp_path / "s" / "samples.npz") as arrays:
        assert arrays["samples"].shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    "solver", [["dopri5"], ["rk4"], ["euler_maruyama", "--steps", "4", "--diffusion", "0.3"]]
)
def test_every_kind_of_solver_samples(trained, tmp_path, solver):
    assert run("sample", trained, "-n", 2, "--out", tmp_path, "--solver", *solver) == 0


def test_a_schedule_is_found_kept_and_used(trained, tmp_path, capsys):
    file, given = tmp_path / "grid.json", ["--solver", "heun", "--steps", 2, "--rows", 2]
    assert run("schedule", trained, *given, "--out", file) == 0
    assert "RMS error at the end, held out" in capsys.readouterr().out
    times = json.loads(file.read_text())["grid"]
    assert (len(times), times[0], times[-1]) == (3, 0.0, 1.0)
    sampled = ["sample", trained, "-n", 2, "--out", tmp_path / "s"]
    assert run(*sampled, "--grid", file) == 0
    assert run(*sampled, "--grid", file, "--steps", 3) == 2
    assert "Leave out --solver and --steps" in said(capsys)
    assert run(*sampled, "--grid", trained / "config.json") == 2
    assert "is not a schedule" in said(capsys)


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
    printed = " ".join(capsys.readouterr().out.split())
    assert "bits/dim, over 3 rows" in printed
    assert "Distances from 3 held-out rows" in printed
    assert "a Gaussian fit" in printed


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


def test_a_bridge_of_pairs_is_trained_and_sampled_from_given_points(tmp_path, capsys):
    """x = x0 + 1/2, by a noise far below the spread: each sample is its own start, a half further on."""
    x0 = 0.2 * np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    np.savez(tmp_path / "pairs.npz", x=x0[:256] + 0.5, x0=x0[:256])
    out = tmp_path / "bridge"
    given = ["--data", tmp_path / "pairs.npz", "--steps", 400, "--out", out, "--ema", 0.9]
    options = ["method=i2sb", "base=pairs", "sigma=0.05", "width=32"]
    words = [word for option in options for word in ("--set", option)]
    assert run("train", "schroedinger_bridge", *given, *words) == 0
    np.savez(tmp_path / "begin.npz", x0=x0[256:])
    assert run("sample", out, "--x0", tmp_path / "begin.npz", "--out", tmp_path / "s") == 0
    with np.load(tmp_path / "s" / "samples.npz") as arrays:
        found = arrays["samples"]
    assert found.shape == (44, 2)
    # Points drawn for themselves would be .28 apart in each element, the root of twice .2^2.
    assert np.square(found - x0[256:] - 0.5).mean() < 0.14**2
    np.savez(tmp_path / "bad.npz", x=x0, x0=x0[:3])
    assert run("train", "flow_matching", "--data", tmp_path / "bad.npz", *given[2:]) == 2
    assert "x0" in said(capsys)


def test_the_list_shows_families_and_solvers(capsys):
    assert run("list") == 0
    shown = capsys.readouterr().out
    for word in ("flow_matching", "log_prob", "dopri5", "euler_maruyama", "torchdiffeq", "width"):
        assert word in shown
    for word in ("variance_preserving", "beta_max=20", "optimal_transport"):
        assert word in shown


PICTURES = ["plot schedules", "plot path", "plot coupling", "plot bias"]


@pytest.mark.parametrize(
    "command", ["train", "sample", "schedule", "evaluate", "list", "plot", *PICTURES]
)
def test_help_shows_a_working_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*command.split(), "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    example = shown[shown.index("interp " + command, shown.index("Example:")) :]
    words = example.split("\n\n")[0].split("╭")[0].split()[1:]
    parsed = cli.parse(words)
    assert type(parsed).__name__.lower() == command.split()[0]


def example(words, capsys):
    """The example in the help of a command."""
    with pytest.raises(SystemExit):
        run(*words, "--help")
    shown = capsys.readouterr().out
    return shown[shown.index("Example: interp") :].split("\n\n")[0].split("╭")[0].split()[2:]


@pytest.mark.parametrize("command", PICTURES)
def test_the_example_of_a_picture_draws_it(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = example(command.split(), capsys)
    if command == "plot path":
        words += ["-n", "3", "--steps", "4", "--solver", "heun"]  # shorter than its default
    assert run(*words) == 0
    (made,) = tmp_path.iterdir()
    with Image.open(made) as image:
        image.verify()
    assert run(*words) == 2  # there already
    assert "--overwrite" in said(capsys)
    assert run(*words, "--overwrite") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["linear", "--target", "peaks", "-n", "3"],
        ["edm:sigma_max=20", "--target", "moons", "-n", "3", "--show", "trajectories"],
        ["cosine", "--target", "eight", "--show", "velocity"],
        ["cosine", "--target", "peaks", "--show", "velocity"],
        ['{"name": "variance_preserving", "beta_max": 10}', "--show", "density"],
        ["linear", "--target", "digits", "-n", "2", "--solver", "heun", "--steps", "3"],
        ["linear", "--target", "peaks", "--solver", "euler_maruyama", "--steps", "7", "-n", "3"],
        ["linear", "--base", "eight", "-n", "3", "--solver", "rk4", "--steps", "9"],
        ["brownian_bridge", "--target", "peaks", "--solver", "euler_maruyama", "--diffusion", "1"],
    ],
    ids=" ".join,
)
def test_paths_of_every_kind_are_drawn(arguments, tmp_path):
    assert run("plot", "path", *arguments, "--out", tmp_path / "p.png") == 0
    with Image.open(tmp_path / "p.png") as image:
        image.verify()


def test_digits_come_out_of_noise(tmp_path):
    given = ["plot", "path", "linear", "--target", "digits", "-n", 4, "--solver", "euler"]
    assert run(*given, "--steps", 3, "--out", tmp_path / "film.gif") == 0
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames > 10


def test_the_same_seed_draws_the_same_picture(tmp_path):
    given = ["plot", "path", "linear", "--target", "moons", "-n", 5, "--solver", "euler_maruyama"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(*given, "--steps", 5, "--seed", seed, "--out", tmp_path / f"{name}.png") == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


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
    (["schedule", "RUN", "--steps", "0"], "steps=0"),
    (["schedule", "RUN", "--objective", "error"], "Did you mean end_error"),
    (["evaluate", "RUN", "--data", "mnist"], "--data-root"),
    (["evaluate", "RUN", "--tolerance", "-1"], "rtol=-1"),
    (["evaluate", "RUN", "-n", "0"], "-n is 0"),
    (["plot", "schedules", "lineer", "--out", "P"], "Did you mean linear"),
    (["plot", "schedules", "edm:sigma=1", "--out", "P"], "Did you mean sigma"),
    (["plot", "schedules", "edm:1", "--out", "P"], "edm:sigma_max=80"),
    (["plot", "bias", "dpm++2m", "--steps", "2", "--out", "P"], "Did you mean dpm++2m_sde"),
    (["plot", "bias", "srk", "--steps", "0", "--out", "P"], "steps=0"),
    (["plot", "schedules", "{linear}", "--out", "P"], "is not JSON"),
    (["plot", "schedules", "linear", "--out", "OUT"], "End it in .png"),
    (["plot", "schedules", "linear", "--out", "no/p.png"], "no folder no"),
    (["plot", "path", "linear", "--target", "moon", "--out", "P"], "Did you mean moons"),
    (["plot", "path", "linear", "--base", "moon", "--out", "P"], "Did you mean moons"),
    (["plot", "path", "linear", "--base", "peaks", "--out", "P"], "eight and moons"),
    (["plot", "path", "linear", "--solver", "dopri", "--out", "P"], "Did you mean dopri5"),
    (["plot", "path", "linear", "-n", "0", "--out", "P"], "-n is 0"),
    (["plot", "path", "linear", "--show", "density", "--out", "G"], "does not move"),
    (
        [
            "plot",
            "path",
            "linear",
            "--solver",
            "euler_maruyama",
            "--diffusion",
            "big",
            "--out",
            "P",
        ],
        "0.5",
    ),
    (["plot", "path", "brownian_bridge", "--target", "digits", "--out", "P"], "Gaussian base"),
    (["plot", "coupling", "optimal", "--out", "P"], "optimal_transport"),
    (["plot", "coupling", "independent", "--target", "peaks", "--out", "P"], "--target moons"),
    (["plot", "coupling", "independent", "-n", "0", "--out", "P"], "-n is 0"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_makes_no_sense_is_said_in_two_sentences(
    arguments, message, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv(data.ROOT, raising=False)
    places = {"OUT": tmp_path / "out", "RUN": trained, "S": tmp_path / "s"}
    places |= {"P": tmp_path / "p.png", "G": tmp_path / "p.gif"}
    assert run(*(places.get(a, a) for a in arguments)) == 2
    text = said(capsys)
    assert message in text
    assert text.startswith("error: ")
    assert "Traceback" not in text
    assert text.count(". ") >= 1  # what is wrong, and then what to do
    assert text[-1] in ".?)"
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("p.*"))


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


@pytest.mark.usefixtures("ctrl_c")
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
    try:
        _, text = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume" in text
    assert "Traceback" not in text


def test_a_family_without_a_solver_says_that_it_does_not_use_one(tmp_path, capsys):
    out = tmp_path / "vae"
    given = ["train", "vae", "--data", "digits", "--steps", 2, "--out", out, "--batch-size", 4]
    assert run(*given, "--set", "network=mlp", "--set", "width=8") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--solver" not in printed
    rows = {}
    for name, more in (("a", []), ("b", ["--solver", "heun", "--steps", 20])):
        assert run("sample", out, "-n", 3, *more, "--out", tmp_path / name) == 0
        with np.load(tmp_path / name / "samples.npz") as arrays:
            rows[name] = arrays["samples"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "vae has no solver to choose: --solver heun is not used." in printed
    assert "--steps 20 is not used." in printed
    assert np.array_equal(rows["a"], rows["b"])
    for more, why in (
        (["--solver", "huen"], "Did you mean heun"),
        (["--steps", 0], "--steps is 0"),
        (["--label", 3], "vae was made without labels, and label 3 was asked for"),
    ):
        assert run("sample", out, "-n", 3, *more, "--out", tmp_path / "c") == 2
        assert why in said(capsys)
