"""What the tests do not leave to chance: threads, the terminal, signals."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch

# One thread a process: the tests are small, and so the timings in them mean something.
torch.set_num_threads(1)

# A project of its own, with a configuration of its own: run by test_example_project.py.
collect_ignore = ["example_project"]

# What a user or a CI machine has set for their own terminal and data.
for name in (
    "FORCE_COLOR",
    "NO_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "TTY_COMPATIBLE",
    "INTERP_DATA_ROOT",
):
    os.environ.pop(name, None)
os.environ.update(COLUMNS="80", LINES="24", TERM="dumb")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C, here and in processes started here.

    A shell starts its background jobs with SIGINT ignored, and Python leaves that as it finds it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
