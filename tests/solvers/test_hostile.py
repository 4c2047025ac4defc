"""Fields that try to take the process down, in processes of their own: none may succeed.

Each must end with the right numbers or with an error that says what is wrong.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import FieldError

SCRIPT = Path(__file__).with_name("hostile_fields.py")
RIGHT = "right"
MEMORY = "FieldError .*(changed the memory|does not hold its)"
FIXED = "RuntimeError .*not resizable"  # torch's own refusal, raised inside the field
WITHOUT = "FieldError .*without memory of its own"
EXPECTED = {
    "frees_its_input": f"{FIXED}|{MEMORY}",
    "grows_its_input": f"{FIXED}|{MEMORY}",
    "frees_its_input_and_allocates_it_again": f"{FIXED}|{MEMORY}",
    "resizes_its_input": MEMORY,
    "sets_its_input_to_other_memory": MEMORY,
    "frees_its_result": MEMORY,
    "shrinks_its_result": MEMORY,
    "resizes_its_time": f"{FIXED}|{RIGHT}",
    "frees_what_weak_references_lead_to": f"{FIXED}|{RIGHT}",
    "frees_what_the_collector_knows": f"{FIXED}|{MEMORY}",
    "collects_and_deletes": RIGHT,
    "reaches_into_the_frames": f"{RIGHT}|FieldError .*output times",
    "returns_what_another_thread_frees": "not one crash",
    "returns_what_another_thread_writes": RIGHT,
    "another_thread_follows_weak_references": RIGHT,
    "a_wrapper_without_memory": RIGHT,
    "a_fake_tensor": WITHOUT,
    "a_tensor_of_zeros_without_memory": f"{WITHOUT}|ArithmeticError",  # zeros, where they are read
    "a_nested_tensor": WITHOUT,
    "an_impostor": "FieldError",
    "inside_vmap": RIGHT,
    "inside_vmap_with_a_plain_state": 'Unsupported .*backend="torch"',
    "inside_grad_with_a_plain_state": 'Unsupported .*backend="torch"',
    "endless_recursion": "RecursionError",
    "a_forked_child": RIGHT,
}

OLDER = """
import runpy, sys, torch
del torch.Tensor.__dlpack_c_exchange_api__
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(older: bool, *names: str) -> subprocess.CompletedProcess[str]:
    """Run cases, on a torch that describes its tensors by a table of functions or an ``older`` one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *(["-c", OLDER] if older else []), str(SCRIPT), *names],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip


@functools.cache
def outcomes(older: bool) -> dict[str, str]:
    """What each case printed; a case that ended the process is followed by the rest in a new one."""
    waiting, found = list(EXPECTED), {}
    while waiting:
        ended = launch(older, *waiting)
        lines = dict(line.split(" ", 1) for line in ended.stdout.splitlines() if " " in line)
        found.update(lines)
        waiting = [name for name in waiting if name not in lines]
        if waiting:
            found[waiting.pop(0)] = f"died with {ended.returncode}: {ended.stderr[-300:]}"
        elif ended.returncode:
            found[list(EXPECTED)[-1]] = (
                f"died at exit with {ended.returncode}: {ended.stderr[-300:]}"
            )
    return found


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_process_lives(name: str, older: bool) -> None:
    if older and not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch is an older one")
    outcome = outcomes(older)[name]
    assert "died" not in outcome, outcome
    assert re.search(EXPECTED[name], outcome), outcome


def test_every_hostile_field_is_run() -> None:
    source = SCRIPT.read_text()
    assert [
        line.removeprefix("def ").split("(")[0]
        for before, line in zip(source.splitlines(), source.splitlines()[1:], strict=False)
        if before == "@case"
    ] == list(EXPECTED)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "ab3", "kencarp4"])
def test_memory_freed_under_a_run_in_torch_is_an_error(method: str) -> None:
    """Torch itself would read on where nothing is."""
    x, run = torch.ones(4, 3), {"method": method, "backend": "torch", "steps": 4}

    def frees_the_state(t: Tensor, x: Tensor) -> Tensor:
        slope = -x
        x.untyped_storage().resize_(0)
        return slope

    def returns_nothing(t: Tensor, x: Tensor) -> Tensor:
        slope = -x
        slope.untyped_storage().resize_(8)
        return slope

    with pytest.raises(FieldError, match="freed the memory of the state"):
        interp.solve(frees_the_state, x, **run)
    with pytest.raises(FieldError, match="memory has been freed"):
        interp.solve(returns_nothing, x, **run)
    narrow = interp.solve(lambda t, x: -x[:, :1].expand(4, 3), x, **run).x
    assert torch.allclose(narrow, interp.solve(lambda t, x: -x, x, **run).x)
