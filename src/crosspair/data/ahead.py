"""Items made, or worked on, by threads while the caller still works on those before them."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Result = TypeVar("Result")

PATIENCE = 5.0  # seconds for the thread to see that nobody listens any more


def ahead(items: Generator[T, None, None], depth: int = 2) -> Iterator[T]:
    """The items in their order, at most `depth` of them in advance. What making one raises is raised here."""
    made: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
    left = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> None:
        while not left.is_set():
            try:
                made.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put("item", item)
                if left.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            items.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        left.set()
        thread.join(PATIENCE)


def work_ahead(work: Callable[[T], Result], items: Iterable[T], threads: int) -> Iterator[Result]:
    """The results of `work` in the order of the items, computed in threads, a few more items than have been taken."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or an interruption the rest is not waited for
