"""One thread a process: the tests are small, and so the timings in them mean something."""

import signal
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C, here and in processes started here.

    A shell starts its background jobs with SIGINT ignored, and Python leaves that as it finds it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
