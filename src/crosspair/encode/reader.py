"""The one ordered reader: images read, decoded and resized by threads ahead of what encodes them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
Result = TypeVar("Result")

THREADS = min(8, os.cpu_count() or 1)


def read_ahead(
    work: Callable[[T], Result], items: Iterable[T], threads: int = THREADS, *, at_once: int = 1
) -> Iterator[Result]:
    """work(item) of every item, in the order of the items, computed by threads ahead of the caller.

    at_once: items a task. At most 2 * threads + 1 tasks are under way or waiting to be taken. What `work` raises for an
    item is raised at its turn, when all results before it have been taken.
    """

    def attempt(some: list[T]) -> list[tuple[Result | None, Exception | None]]:
        results: list[tuple[Result | None, Exception | None]] = []
        for item in some:
            try:
                results.append((work(item), None))
            except Exception as error:
                results.append((None, error))
                break
        return results

    waiting: deque[Future[list[tuple[Result | None, Exception | None]]]] = deque()

    def first() -> Iterator[Result]:
        for result, error in waiting.popleft().result():
            if error is not None:
                raise error
            yield result  # type: ignore[misc]

    with ThreadPoolExecutor(threads) as pool:
        try:
            for some in grouped(items, at_once):
                waiting.append(pool.submit(attempt, some))
                if len(waiting) > 2 * threads:
                    yield from first()
            while waiting:
                yield from first()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or an interruption the rest is not waited for


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter; never more items are drawn than are given out."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
