"""The engine refuses mangled arguments; it never takes the process down, and never panics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("mangled_calls.py")


def test_mangled_calls_end_with_a_result_or_an_error() -> None:
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(SCRIPT), "1500", "1"],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert "'went through'" in run.stdout, run.stdout
    assert "'ValueError'" in run.stdout, run.stdout
