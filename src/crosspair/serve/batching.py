"""Questions that come together are answered together.

One thread answers. While it is at it, further questions wait; all of them, up to a limit, are its next batch. So a
question alone never waits for company, and under load the batches grow by themselves.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Busy(Exception):  # noqa: N818 - it is no error of the program
    """More questions wait than will be answered in good time."""


class Batcher(Generic[Asked, Answer]):
    """Answers questions of many tasks in batches, on a thread of its own.

    answer: as many answers as questions, in their order. cost: of a question, in any unit; a batch costs at most
    `batch`, or is a single question. capacity: what waiting questions may cost together.
    observe: is told the number of questions of each batch and the seconds it took.
    """

    def __init__(
        self,
        answer: Callable[[list[Asked]], list[Answer]],
        *,
        cost: Callable[[Asked], int] = lambda query: 1,
        batch: int = 64,
        capacity: int = 512,
        observe: Callable[[int, float], None] = lambda queries, seconds: None,
    ) -> None:
        self._answer = answer
        self._cost = cost
        self._batch = batch
        self._capacity = capacity
        self._observe = observe
        self._waiting: deque[tuple[Asked, Future[Answer]]] = deque()
        self._waiting_cost = 0
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._waiting)

    async def ask(self, query: Asked) -> Answer:
        """The answer to one question. Raises Busy when too many wait, or what answering it raised."""
        future: Future[Answer] = Future()
        with self._changed:
            cost = self._cost(query)
            if self._closed or (self._waiting and self._waiting_cost + cost > self._capacity):
                raise Busy
            self._waiting.append((query, future))
            self._waiting_cost += cost
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Answer what waits, take no more, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            # A client that gave up has cancelled its future.
            asked = [(query, future) for query, future in batch if future.set_running_or_notify_cancel()]
            if asked:
                self._resolve(asked)

    def _next_batch(self) -> list[tuple[Asked, Future[Answer]]]:
        """The oldest questions; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch: list[tuple[Asked, Future[Answer]]] = []
            total = 0
            while self._waiting:
                cost = self._cost(self._waiting[0][0])
                if batch and total + cost > self._batch:
                    break
                batch.append(self._waiting.popleft())
                total += cost
            self._waiting_cost -= total
            return batch

    def _resolve(self, asked: list[tuple[Asked, Future[Answer]]]) -> None:
        start = time.perf_counter()
        try:
            answers = self._answer([query for query, _ in asked])
        except BaseException as error:
            if len(asked) == 1:
                asked[0][1].set_exception(error)
                return
            for one in asked:  # the others shall not suffer from the one that can't be answered
                self._resolve([one])
            return
        self._observe(len(asked), time.perf_counter() - start)
        for (_, future), answer in zip(asked, answers, strict=True):
            future.set_result(answer)
