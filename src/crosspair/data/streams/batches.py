"""The batches of a stream: an epoch planned in advance from what the first pass found, then read in that order.

Shards come in a random order. In it an item (an image with some of its captions) moves back by a random distance of
at most `shuffle_buffer` places: no more than so many images are in memory, and every position of an epoch is known
without reading what comes before it.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, Protocol, overload

import numpy as np
from torch import Tensor

from crosspair.data.batching import Batch, BatchSource, Reading, TrainingSplit
from crosspair.data.plans import CHANGES, BatchPlan, Drawing

if TYPE_CHECKING:
    from crosspair.data.readers.webdataset import Sample

_PATIENCE = 5.0  # seconds for the thread ahead to see that nobody listens any more
_CAPTIONS = 8  # the draws of an item before those that order its captions


class Shards(TrainingSplit, Protocol):
    """A split that is read shard after shard."""

    shard_ends: np.ndarray  # int64 [shards], the row behind each shard's last image
    caption_counts: np.ndarray  # int64 [n], of each image

    def read(self, shard: int) -> "Generator[tuple[int, Sample], None, None]":
        """The samples of a shard, in their order, with their rows."""


class StreamPlans(Sequence[BatchPlan]):
    """The batches of one epoch. Each is made when asked for: millions of them take little memory."""

    def __init__(
        self,
        shards: np.ndarray,
        rows: np.ndarray,
        groups: np.ndarray,
        caption_counts: np.ndarray,
        captions_per_image: int,
        hflip: bool,
        key: np.uint64,
    ) -> None:
        """shards: as they are read. rows, groups [batches, batch]: each item's image, and which of its groups."""
        self.shards = shards
        self.rows = rows
        self.groups = groups
        self.caption_counts = caption_counts
        self.captions_per_image = captions_per_image
        self.hflip = hflip
        self.key = key

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> BatchPlan: ...
    @overload
    def __getitem__(self, index: slice) -> "StreamPlans": ...
    def __getitem__(self, index: int | slice) -> "BatchPlan | StreamPlans":
        if isinstance(index, slice):
            return self._of(self.rows[index], self.groups[index])
        rows, groups = self.rows[index], self.groups[index]
        counts = self.caption_counts[rows]
        order = _uniform(self.key, rows, _CAPTIONS + np.arange(counts.max()))
        sizes = np.minimum(self.captions_per_image or counts, counts)
        captions = [
            order[item, :count].argsort()[group * size : (group + 1) * size]
            for item, (count, group, size) in enumerate(zip(counts, groups, sizes, strict=True))
        ]
        drawn = _uniform(self.key + np.uint64(1) + groups.astype(np.uint64), rows, np.arange(5 + CHANGES))
        hflipped = drawn[:, 4] < (0.5 if self.hflip else 0.0)
        return BatchPlan(rows, captions, hflipped, drawn[:, :4], drawn[:, 5:])

    def shard(self, rank: int, processes: int) -> "StreamPlans":
        """The part of one of several processes, cut as `BatchPlan.shard` cuts a batch."""
        size = self.rows.shape[1]
        part = slice(size * rank // processes, size * (rank + 1) // processes)
        return self._of(self.rows[:, part], self.groups[:, part])

    def _of(self, rows: np.ndarray, groups: np.ndarray) -> "StreamPlans":
        rest = (self.caption_counts, self.captions_per_image, self.hflip, self.key)
        return StreamPlans(self.shards, rows, groups, *rest)


def plan_stream(
    split: Shards,
    *,
    batch_size: int,
    captions_per_image: int,
    covers: Literal["images", "captions"],
    hflip: bool,
    seed: Sequence[int],
    shuffle_buffer: int,
    processes: int = 1,
) -> StreamPlans:
    """The batches of one epoch; the arguments are those of `plan_epoch`.

    Each process has its own part of the shards' sequence (`StreamPlans.shard`), so that together they read every item
    once, and all have as many batches. A last batch that is not full is left out, unless it is the only one.
    """
    random = np.random.default_rng(list(seed))
    key = random.integers(2**63, dtype=np.uint64)
    shards = random.permutation(len(split.shard_ends))
    starts = np.concatenate([[0], split.shard_ends[:-1]])
    rows = np.concatenate([np.arange(starts[shard], split.shard_ends[shard]) for shard in shards])
    groups_each = np.ones_like(rows)
    if covers == "captions" and captions_per_image:
        groups_each = -(-split.caption_counts[rows] // captions_per_image)
    groups = np.arange(groups_each.sum()) - np.repeat(groups_each.cumsum() - groups_each, groups_each)
    rows = np.repeat(rows, groups_each)
    size = min(batch_size, len(rows))
    batches = len(rows) // size
    place = np.arange(len(rows)) + random.random(len(rows)) * shuffle_buffer
    parts = []
    for process in range(processes):
        # Cut in the ratio in which a batch is cut: each part then fills its share of every batch.
        ends = [size * part // processes for part in (process, process + 1)]
        first, end = (len(rows) * part // size for part in ends)
        order = first + place[first:end].argsort(kind="stable")[: batches * (ends[1] - ends[0])]
        parts.append(order.reshape(batches, -1))
    order = np.concatenate(parts, axis=1)
    return StreamPlans(shards, rows[order], groups[order], split.caption_counts, captions_per_image, hflip, key)


class StreamSource(BatchSource):
    """Makes the batches of a stream. An image is in memory from when its shard is read until its last use."""

    def __init__(self, split: Shards, reading: Reading) -> None:
        self.stream = split
        self.caption_counts = split.caption_counts.tolist()
        self._held: dict[int, Sample] = {}
        self.tokens = {}  # of what is held
        self._prepare(split, reading)

    def plan(self, drawing: Drawing, seed: Sequence[int]) -> "StreamPlans":
        """The batches of one epoch; the only sampler of a stream is `shuffled`."""
        return plan_stream(
            self.stream,
            batch_size=drawing.batch_size,
            captions_per_image=drawing.captions_per_image,
            covers=drawing.covers,
            hflip=drawing.hflip,
            seed=seed,
            shuffle_buffer=drawing.shuffle_buffer,
            processes=drawing.processes,
        )

    def share(self, plans: Sequence[BatchPlan], rank: int, processes: int) -> "StreamPlans":
        assert isinstance(plans, StreamPlans)
        return plans.shard(rank, processes)

    def batches(self, plans: Sequence[BatchPlan], workers: int, pin_memory: bool = False) -> Iterator[Batch]:
        """The batches of `plans` (StreamPlans), read and decoded in advance by threads, at least one."""
        assert isinstance(plans, StreamPlans)
        return _ahead(self._batches(plans, max(1, workers), pin_memory))

    def _batches(self, plans: StreamPlans, threads: int, pin_memory: bool) -> Generator[Batch, None, None]:
        self._held.clear()
        self.tokens.clear()
        uses = np.bincount(plans.rows.ravel(), minlength=len(self.stream))
        arriving = self._arriving(plans.shards, uses > 0)
        with ThreadPoolExecutor(threads) as self._threads:
            for plan in plans:
                for row in plan.images.tolist():
                    while row not in self._held:
                        arrived, sample = next(arriving)
                        self._held[arrived] = sample
                        self.tokens[arrived] = [
                            self.reading.tokenize(text) for text in sample.texts(self.reading.tokenizer)
                        ]
                batch = self[plan]
                yield batch.pin_memory() if pin_memory else batch
                for row in plan.images.tolist():
                    uses[row] -= 1
                    if uses[row] == 0:
                        del self._held[row], self.tokens[row]

    def _arriving(self, shards: np.ndarray, wanted: np.ndarray) -> "Iterator[tuple[int, Sample]]":
        """The wanted samples with their rows; of each shard no more is read than that takes."""
        for shard in shards.tolist():
            end = int(self.stream.shard_ends[shard])
            start = int(self.stream.shard_ends[shard - 1]) if shard else 0
            left = int(wanted[start:end].sum())
            samples = self.stream.read(shard)
            while left:
                row, sample = next(samples)
                if wanted[row]:
                    left -= 1
                    yield row, sample
            samples.close()

    def _captions(self, image: int) -> Sequence[str]:
        return self._held[image].captions

    def _images(self, plan: BatchPlan) -> list[Tensor]:
        return list(self._threads.map(lambda row: self._image(plan, row), range(len(plan.images))))

    def _pixels(self, index: int) -> Tensor:
        from crosspair.data.images import decode_image

        sample = self._held[index]
        return decode_image(sample.image, sample.key)


def _uniform(key: np.uint64 | np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float64 [rows, columns] in 0..1, decided by the key, the row and the column alone (SplitMix64's mixing)."""
    value = np.atleast_1d(key)[:, None] * np.uint64(0xD1342543DE82EF95) + rows.astype(np.uint64)[:, None]
    for step in (np.uint64(0), columns.astype(np.uint64)[None]):
        value = (value + step + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)) / 2.0**53


def _ahead(items: Generator[Batch, None, None], depth: int = 2) -> Iterator[Batch]:
    """The items in their order, made by a thread at most `depth` in advance; what making one raises is raised here."""
    made: queue.Queue[tuple[str, Batch | BaseException | None]] = queue.Queue(depth)
    left = threading.Event()

    def put(kind: str, value: Batch | BaseException | None) -> None:
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
        thread.join(_PATIENCE)
