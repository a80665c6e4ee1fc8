"""The reader: results in order, a bounded number ahead, errors at their turn."""

import threading
import time

import pytest

from crosspair.encode.reader import grouped, read_ahead


@pytest.mark.parametrize("at_once", [1, 3])
def test_results_come_in_the_order_of_the_items_whichever_is_done_first(at_once):
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return -number

    assert list(read_ahead(work, range(20), 4, at_once=at_once)) == [-number for number in range(20)]
    assert list(read_ahead(work, [], 4, at_once=at_once)) == []


@pytest.mark.parametrize("at_once", [1, 4])
def test_an_error_is_raised_at_its_turn_after_all_results_before_it(at_once):
    def work(number: int) -> int:
        if number in (6, 7):
            raise ValueError(f"item {number}")
        return number

    results = read_ahead(work, range(20), 3, at_once=at_once)
    assert [next(results) for _ in range(6)] == list(range(6))
    with pytest.raises(ValueError, match="item 6"):
        next(results)


def test_it_reads_a_bounded_number_ahead_and_stops_with_its_caller():
    done = []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            done.append(number)
        return number

    results = read_ahead(work, iter(range(1_000_000)), 2, at_once=5)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(done) <= 25
    results.close()
    before = len(done)
    time.sleep(0.05)
    assert len(done) == before


def test_groups_draw_no_more_than_they_give():
    items = iter(range(7))
    groups = grouped(items, 3)
    assert next(groups) == [0, 1, 2]
    assert next(items) == 3
    assert list(groups) == [[4, 5, 6]]
