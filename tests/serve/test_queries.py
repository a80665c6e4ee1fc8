"""Queries of many tasks, answered in batches by one thread."""

import asyncio
import threading

import pytest

pytest.importorskip("fastapi", reason="the extra `search` is not installed")
from crosspair.serve.queries import Batcher, Busy


class Slow:
    """Doubles numbers once it is allowed to, and writes down its batches."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, queries: list[int]) -> list[int]:
        self.batches.append(queries)
        self.started.set()
        self.go.wait(5)
        if 13 in queries:
            raise ValueError("thirteen")
        return [2 * query for query in queries]


async def ask_while_it_works(slow: Slow, batcher: Batcher, queries: list[int]) -> list:
    """Answers to a first query, 0, and to others that come while it is at that."""
    first = asyncio.create_task(batcher.ask(0))
    await asyncio.to_thread(slow.started.wait, 5)
    others = [asyncio.create_task(batcher.ask(query)) for query in queries]
    await asyncio.sleep(0.01)
    slow.go.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


def test_what_comes_while_it_works_is_the_next_batch():
    slow = Slow()
    batcher = Batcher(slow)
    assert asyncio.run(ask_while_it_works(slow, batcher, [1, 2, 3])) == [0, 2, 4, 6]
    assert slow.batches == [[0], [1, 2, 3]]
    batcher.close()


def test_a_batch_costs_no_more_than_its_limit():
    slow = Slow()
    batcher = Batcher(slow, cost=lambda query: query, batch=6)
    assert asyncio.run(ask_while_it_works(slow, batcher, [1, 5, 2, 9, 1])) == [0, 2, 10, 4, 18, 2]
    assert slow.batches == [[0], [1, 5], [2], [9], [1]]


def test_more_than_can_wait_is_refused_at_once():
    slow = Slow()
    batcher = Batcher(slow, capacity=2)
    *answers, refused = asyncio.run(ask_while_it_works(slow, batcher, [1, 2, 3]))
    assert answers == [0, 2, 4]
    assert isinstance(refused, Busy)


def test_a_query_that_can_not_be_answered_spoils_no_other():
    slow = Slow()
    first, one, thirteen, two = asyncio.run(ask_while_it_works(slow, Batcher(slow), [1, 13, 2]))
    assert (first, one, two) == (0, 2, 4)
    assert isinstance(thirteen, ValueError)


def test_nobody_works_for_a_client_that_has_gone():
    slow = Slow()
    batcher = Batcher(slow)

    async def leave() -> None:
        first = asyncio.create_task(batcher.ask(0))
        await asyncio.to_thread(slow.started.wait, 5)
        gone = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        slow.go.set()
        assert await first == 0

    asyncio.run(leave())
    batcher.close()
    assert slow.batches == [[0]]


def test_after_closing_it_takes_no_more():
    batcher = Batcher(lambda queries: queries)
    batcher.close()
    with pytest.raises(Busy):
        asyncio.run(batcher.ask(1))
