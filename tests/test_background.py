"""One thread that works ahead: order, errors, ends."""

import gc
import itertools
import subprocess
import sys
import threading
import time
import traceback

import pytest

from interp.background import ahead_of
from interp.errors import OptionError


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("interp-ahead")]


def wait_until(what):
    deadline = time.monotonic() + 10
    while not what() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert what()


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_results_come_in_order_and_all_of_them(depth):
    assert list(ahead_of(lambda x: x * x, range(20), depth)) == [x * x for x in range(20)]
    assert list(ahead_of(str, [], depth)) == []
    wait_until(lambda: not workers())


def test_it_works_ahead_in_a_thread_and_reads_its_source_in_the_callers():
    here, done, read = threading.get_ident(), [], []

    def source():
        for x in itertools.count():
            assert threading.get_ident() == here
            read.append(x)
            yield x

    def work(x):
        assert threading.get_ident() != here
        done.append(x)
        return x

    results = ahead_of(work, source(), 3)
    assert read == []  # nothing happens before the first is asked for
    assert next(results) == 0
    assert read == [0, 1, 2, 3]
    wait_until(lambda: done == [0, 1, 2, 3])  # with nobody asking
    assert next(results) == 1
    results.close()
    wait_until(lambda: not workers())


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_where_it_is_due_with_the_threads_traceback(depth):
    def fails_at_three(x):
        if x == 3:
            raise KeyError("three")
        return x

    results = ahead_of(fails_at_three, range(9), depth)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three") as info:
        next(results)
    assert "fails_at_three" in "".join(traceback.format_tb(info.tb))
    if depth:
        with pytest.raises(StopIteration):
            next(results)
    results = None
    wait_until(lambda: not workers())


def test_an_error_of_the_source_comes_after_the_items_before_it():
    def source():
        yield from range(3)
        raise KeyError("no more")

    results = ahead_of(lambda x: x, source(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="no more"):
        next(results)
    wait_until(lambda: not workers())


def test_dropping_it_ends_the_thread():
    results = ahead_of(lambda x: x, itertools.count(), 2)
    next(results)
    assert workers()
    del results
    gc.collect()
    wait_until(lambda: not workers())


def test_a_program_that_leaves_it_open_ends():
    code = (
        "import itertools, time\n"
        "from interp.background import ahead_of\n"
        "results = ahead_of(lambda x: time.sleep(0.05), itertools.count(), 5)\n"
        "next(results)\n"
        "print('left')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "left", "")


@pytest.mark.parametrize("depth", [-1, 1.5, "two", None])
def test_a_depth_that_is_no_whole_number_is_refused(depth):
    with pytest.raises(OptionError, match="depth="):
        ahead_of(str, [], depth)
