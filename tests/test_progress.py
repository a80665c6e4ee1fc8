"""Bars that outlive killed processes."""

import multiprocessing
import os
import signal
import sys
import threading

import pytest

from crosspair.progress import progress_bar

fork = multiprocessing.get_context("fork")


def die_with_the_lock() -> None:
    with progress_bar(disable=True).get_lock():
        os.kill(os.getpid(), signal.SIGKILL)


def outlive_one_that_does() -> None:
    lock = progress_bar(disable=True).get_lock()
    process = fork.Process(target=die_with_the_lock)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert lock.acquire(blocking=False)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_a_process_killed_while_it_draws_leaves_the_bars_of_others_alone():
    process = fork.Process(target=outlive_one_that_does)  # not here: all tests behind this one would wait forever
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_bar_starts_no_thread():
    before = set(threading.enumerate())
    with progress_bar(range(3)) as bar:
        assert list(bar) == [0, 1, 2]
        assert set(threading.enumerate()) <= before


def test_a_log_file_gets_a_line_at_most_every_ten_seconds(capsys):
    with progress_bar(total=5, desc="work") as bar:
        for _ in range(5):
            bar.update()
    assert capsys.readouterr().err.count("\r") == 2  # its start and its end
