"""Search queries of many clients, answered in batches: encoded by kind, searched together.

One thread answers. While it is at it, further queries wait; all of them, up to a limit, are its next batch. So a query
alone never waits for company, and under load the batches grow by themselves.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from crosspair.gallery.gallery import Gallery

IMAGE_COST = 8  # encoding an image takes about as long as this many sentences

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Busy(Exception):  # noqa: N818 - it is no error of the program
    """Raised when too many queries wait to be answered in good time."""


class Batcher(Generic[Asked, Answer]):
    """Answers the queries of many tasks in batches, on a thread of its own.

    answer: as many answers as queries, in their order. cost: of a query, in any unit; a batch costs at most `batch`, or
    is a single query. capacity: what waiting queries may cost together.
    observe: is told the number of queries of each batch and the seconds it took.
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
        """Queries that wait."""
        return len(self._waiting)

    async def ask(self, query: Asked) -> Answer:
        """The answer to one query. Raises Busy when too many wait, or what answering it raised."""
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
        """The oldest queries; none when closed."""
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


@dataclass(frozen=True, eq=False)
class SearchQuery:
    """A query of the service: a sentence, an image uint8 [3, h, w] or a row of the gallery, exactly one of them."""

    top: int
    text: str | None = None
    image: Tensor | None = None
    row: int | None = None

    @property
    def cost(self) -> int:
        return 1 if self.image is None else IMAGE_COST


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    row: int
    score: float | None  # cosine, -1..1; None without a query


class Answerer:
    """Answers batches of queries about one gallery. Call it from one thread at a time."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.model = gallery.model()

    def __call__(self, queries: list[SearchQuery]) -> list[list[Hit]]:
        """For each query its hits, best first; a row is not among its own."""
        vectors = np.empty((len(queries), self.gallery.dimension), np.float32)
        texts = [(place, each.text) for place, each in enumerate(queries) if each.text is not None]
        images = [(place, each.image) for place, each in enumerate(queries) if each.image is not None]
        if texts:
            vectors[[place for place, _ in texts]] = self.model.encode_text([text for _, text in texts]).numpy()
        if images:
            encoded = self.model.encode_image([image for _, image in images])
            vectors[[place for place, _ in images]] = encoded.numpy()
        for place, each in enumerate(queries):
            if each.row is not None:
                vectors[place] = self.gallery.embeddings[each.row]
        found = self.gallery.search(vectors, max(each.top + (each.row is not None) for each in queries))
        hits = [
            [Hit(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]
        return [
            [hit for hit in of_query if hit.row != each.row][: each.top]
            for each, of_query in zip(queries, hits, strict=True)
        ]
