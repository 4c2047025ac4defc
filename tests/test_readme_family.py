"""The README's family of five lines: loss, sampling, command line and equivalence."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import adapters
from interp import families, schedules
from interp.equivalence import compare
from interp.errors import UnknownName

README = Path(__file__).parents[1] / "README.md"
SCRIPT = re.search(r"<!-- five lines -->\n```python\n(.*?)```", README.read_text(), re.S)[1]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script, as a user's file."""
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(SCRIPT)
    yield path
    families._registered.pop("mine", None)


@pytest.fixture
def family(script):
    runpy.run_path(str(script), run_name="mine")
    return adapters.create("mine", (2,), width=8)


def command(script, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [str(script), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code


def test_it_is_five_lines():
    lines = [line for line in SCRIPT.splitlines() if line.strip()]
    first = next(i for i, line in enumerate(lines) if line.startswith("class"))
    last = next(i for i, line in enumerate(lines) if line.startswith("if __name__"))
    assert last - first == 5


def test_loss_and_sampling(family):
    """The target of the loss is dI/dt by hand: the exact slope leaves no loss but rounding."""
    x1 = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, x0 = torch.full((64,), 0.4, dtype=torch.float64), x1.flip(0)
    point, target = family.regression.target(t, x0, x1)
    torch.testing.assert_close(point, 0.6**1.5 * x0 + math.sin(0.2 * math.pi) * x1)
    slope = -1.5 * 0.6**0.5 * x0 + math.pi / 2 * math.cos(0.2 * math.pi) * x1
    torch.testing.assert_close(target, slope)
    family.loss(x1.float()).backward()
    assert all(p.grad is not None for p in family.network.parameters())
    assert family.sample(3, seed=0).shape == (3, 2)
    assert family.log_prob(x1[:2].float(), steps=4, method="rk4").shape == (2,)


def test_equivalence(family):
    """Flow matching at another speed: (1 - s)/s = (1 - t)^1.5 / sin(pi t / 2), and scale 1 / (sum)."""
    report = compare(family, adapters.create("flow_matching", (2,), width=8))
    assert report.equivalent
    for t in (0.2, 0.7):
        alpha, beta = (1 - t) ** 1.5, math.sin(math.pi * t / 2)
        assert float(report.time_map(t)) == pytest.approx(beta / (alpha + beta), rel=1e-9)
        assert float(report.scale_map(t)) == pytest.approx(1 / (alpha + beta), rel=1e-9)
    assert report.loss_ratio > 1.01  # another weight
    twin = adapters.create("flow_matching", (2,), path=schedules.variance_preserving(), width=8)
    assert not compare(family, twin).equivalent


def test_command_line(script, monkeypatch, tmp_path, capsys):
    points = np.random.default_rng(0).standard_normal((40, 1, 4, 4)).clip(-1, 1)
    np.savez(tmp_path / "data.npz", points.astype("float32"))
    out = tmp_path / "run"
    small = ("--set", "network=mlp", "--set", "width=8")
    told = ("train", "mine", "--data", tmp_path / "data.npz", "--steps", 2, "--out", out, *small)
    assert command(script, monkeypatch, *told) == 0, capsys.readouterr().err
    drawn = ("sample", out, "-n", 4, "--steps", 2, "--out", tmp_path / "s")
    assert command(script, monkeypatch, *drawn) == 0, capsys.readouterr().err
    assert np.load(tmp_path / "s" / "samples.npz")["samples"].shape == (4, 1, 4, 4)
    capsys.readouterr()
    assert command(script, monkeypatch, "compare", "mine", "flow_matching") == 0
    assert re.search(r"equivalent +yes", capsys.readouterr().out)
    with pytest.raises(UnknownName, match="Did you mean mine"):
        adapters.create("min", (2,))
