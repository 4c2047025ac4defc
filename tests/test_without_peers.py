"""Solvers, densities and gradients stand alone: without other libraries' solvers they do the same."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("diffusers", "torchdiffeq", "torchsde", "k_diffusion", "azula", "flow_matching")

PROGRAM = f"""
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)


sys.meta_path.insert(0, Blocked())
import importlib.util
import pytest

for name in {BLOCKED!r}:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    assert found is None, name
sys.exit(pytest.main(sys.argv[1:]))
"""

#: What shows each part at work and takes little time; none names a peer.
FAST = {
    "tests/solvers/test_gradients.py": "refused or leaves or records or no_bit or transforms",
    "tests/solvers/test_transforms.py": "vmap and not derivative",
    "tests/solvers/test_orders.py": "(rk4 or dopri5) and not torchdiffeq",
    "tests/solvers/test_failures.py": "not torchdiffeq",
    "tests/solvers/test_sde.py": "euler_maruyama and not torchsde",
    "tests/test_likelihood.py": "not chunks and not view",
    "tests/test_densities.py": "refused or samples or recorded or flat_one",
}


def test_solvers_densities_and_gradients_need_no_peer() -> None:
    chosen = [argument for file in FAST for argument in (file,)]
    keywords = " or ".join(f"({words})" for words in FAST.values())
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, "-x", "-q", "-p", "no:cacheprovider", *chosen, "-k", keywords],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert "passed" in run.stdout
