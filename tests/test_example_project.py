"""interp.testing from outside: a user's project with a schedule, a family and tests of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent / "example_project"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The project, and beside it what an installer writes of its pyproject: no network is needed."""
    root = tmp_path_factory.mktemp("user") / "sway"
    shutil.copytree(PROJECT, root, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    about = root / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return root


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_what_is_right_passes(installed):
    found = run(installed, "-rs", "tests/test_sway.py")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "5 passed" in found.stdout
    assert "flow_matching has no option depth" in found.stdout


def test_what_fails_shrinks_to_a_call_that_can_be_copied(installed):
    found = run(installed, "tests/too_deep.py")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "2 failed" in found.stdout
    # The simplest number above 1, and where it turns back.
    assert "path=sway(depth=2.0)" in found.stdout
    assert "log-SNR falls from" in found.stdout
    # Everything at its simplest, and the table of compare.
    assert "path=sway(depth=0.0)" in found.stdout
    assert "are not one:" in found.stdout
    assert "log-SNR runs from -inf to inf on the one and from -10" in found.stdout
