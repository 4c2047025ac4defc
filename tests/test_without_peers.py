"""Solvers, densities and gradients stand alone: without other libraries' solvers they do the same."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("diffusers", "torchdiffeq", "torchsde", "k_diffusion", "azula", "flow_matching")

#: Runs pytest where the finder of installed packages does not find the peers.
PROGRAM = f"""
import importlib.util
import sys
from importlib.machinery import PathFinder

import pytest


class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        peer = name.split(".")[0] in {BLOCKED!r}
        return None if peer else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
assert not any(importlib.util.find_spec(name) for name in {BLOCKED!r})
code = pytest.main(sys.argv[1:])
assert not any(name.split(".")[0] in {BLOCKED!r} for name in sys.modules)
sys.exit(code)
"""

#: What shows each part at work and takes little time.
FAST = (
    "tests/solvers/test_gradients.py::test_leaves_that_the_field_takes_from_elsewhere_are_found",
    "tests/solvers/test_gradients.py::test_a_plain_run_records_nothing_and_says_so",
    "tests/solvers/test_gradients.py::test_checkpointed_noise_is_the_same_noise",
    "tests/solvers/test_transforms.py::test_vmap_solves_each_row",
    "tests/test_likelihood.py::test_the_flow_of_a_mixture_has_its_density",
    "tests/test_densities.py::test_a_grid_is_in_the_time_of_the_path",
    "tests/test_densities.py::test_what_makes_no_sense_is_refused",
    "tests/test_testing.py",
)


def test_solvers_densities_and_gradients_need_no_peer() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, "-x", "-q", "-p", "no:cacheprovider", *FAST],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert "[100%]" in run.stdout
