"""One thread that works ahead of the loop that waits for it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from .arguments import whole

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead_of(
    function: Callable[[Item], Result], source: Iterable[Item], depth: int = 2
) -> Iterator[Result]:
    """``function(item)`` of each item of ``source``, in order, up to ``depth`` items ahead.

    One thread calls the function; ``source`` is read in the caller's own thread, ``depth`` items
    ahead, so that what it draws from torch's global generator does not depend on when the thread
    runs. The function should draw from nothing that it shares with the caller.

    An exception of the function is raised here, with the thread's traceback, when its item is due;
    one of ``source`` after the items before it. Closing or dropping the iterator, or an exception,
    ends the thread with the item it is at.

    Args:
        function: what to compute.
        source: the items.
        depth: how many results to have ready, 0 or more; 0 computes in the caller's thread.

    Raises:
        OptionError: a depth that is no whole number.
    """
    depth = whole("depth", depth, 0)
    return map(function, source) if depth == 0 else _ahead_of(function, source, depth)


def spare_core(device: torch.device) -> bool:
    """Whether a thread beside a loop on ``device`` would have a core to itself.

    Where torch's own threads fill the cores, each of its parallel loops waits for the one of them
    that a further thread has pushed aside, and working ahead costs more than it saves.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return device.type != "cpu" or torch.get_num_threads() < cores


def _ahead_of(
    function: Callable[[Item], Result], source: Iterable[Item], depth: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    items, ended, failure = iter(source), False, None
    pool = ThreadPoolExecutor(1, thread_name_prefix="interp-ahead")
    try:
        while True:
            while not ended and len(waiting) <= depth:
                try:
                    waiting.append(pool.submit(function, next(items)))
                except StopIteration:
                    ended = True
                except Exception as error:  # whatever the caller's iterator may raise
                    ended, failure = True, error
            if waiting:
                yield waiting.popleft().result()
            elif failure is not None:
                raise failure
            else:
                return
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
