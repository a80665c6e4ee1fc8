"""Estimated cost of a ranking, printed before it starts: time from a short measurement, memory from the sizes."""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crosspair.errors import UserError
from crosspair.evaluation.counting import Counting, Pair, Side, size
from crosspair.progress import progress_bar

# Fewer scores are done in seconds, and need no announcement.
LARGE = 2_000_000_000
_SAMPLES = 3
_CGROUP = Path("/sys/fs/cgroup")
# Arrays of int64 at the peak of sorting by label and of the metrics, and what libraries take for themselves: measured
# at 20,000 x 100,000 (benchmarks/streaming.py) and, without the counting, at 1,000,000 x 5,000,000.
_ARRAYS_PER_ITEM = 10
_ARRAYS_PER_POSITIVE = 6
_LIBRARIES = 64 << 20


@dataclass(frozen=True)
class Cost:
    """Cost of counting some pairs of blocks.

    description: of what is scored, after the numbers of images and texts. given: the name of what scores come from.
    scores: how many. seconds: with reading the positives. scores_per_second: measured, counted in both directions.
    memory: bytes at the peak, beyond what was given. device: where it runs, with the number of threads.
    """

    images: int
    texts: int
    description: str
    given: str
    scores: int
    seconds: float
    scores_per_second: float
    memory: int
    device: str

    def describe(self) -> str:
        part = self.scores / (self.images * self.texts)
        share = "" if part == 1 else f", {part:.1%} of them here"
        return (
            f"{self.images:,} pictures x {self.texts:,} texts {self.description}{share}: "
            f"about {duration(self.seconds)} on {self.device} ({self.scores_per_second / 1e6:,.0f} million scores a "
            f"second), {self.memory / 1e9:.1f} GB of memory beyond the {self.given}"
        )


def estimate_cost(counting: Counting, pairs: Sequence[Pair]) -> Cost:
    """Count a few tiles at the beginning, in the middle and at the end without keeping anything; about a second."""
    seconds_a_score, seconds_a_row = _measure(counting)
    scores = sum(size(images) * size(texts) for images, texts in pairs)
    built = {images.start: size(images) for images, _ in pairs}
    rows = sum(built.values()) + sum(size(texts) for _, texts in pairs)
    if len({texts.start for _, texts in pairs}) == 1:  # they are kept
        rows = sum(built.values()) + size(pairs[0][1])
    diagonal_scores, diagonal_rows = _diagonal(counting)
    seconds = (scores + diagonal_scores) * seconds_a_score + (rows + diagonal_rows) * seconds_a_row
    threads = torch.get_num_threads()
    device = str(counting.device) if counting.device.type != "cpu" else f"{threads} thread{'s' * (threads > 1)}"
    sizes = len(counting.images), len(counting.texts), counting.description, counting.given
    return Cost(*sizes, scores, seconds, 1 / seconds_a_score, _memory(counting), device)


def announced(counting: Counting, pairs: Sequence[Pair], done: int = 0) -> Iterator[Pair]:
    """The pairs after the first `done`, with a bar; for a long job, what it costs is said at once.

    Raises UserError when its memory isn't there.
    """
    left = pairs[done:]
    if sum(size(images) * size(texts) for images, texts in left) < LARGE:
        return iter(left)
    cost = estimate_cost(counting, left)
    free = available_memory()
    print(f"{cost.describe()} ({free / 1e9:.1f} GB available)", file=sys.stderr)
    if counting.device.type == "cpu" and cost.memory > free:
        raise UserError(
            f"ranking needs {cost.memory / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are available; "
            "free some or use a larger machine"
        )
    return _with_bar(left, cost.scores)


def available_memory() -> int:
    """Bytes that can be had without swapping: of the machine, or of what is left of its container's limit."""
    try:
        free = _fields(Path("/proc/meminfo"))["MemAvailable"] * 1024
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        files = _fields(_CGROUP / "memory.stat")
        return min(free, limit - used + files["active_file"] + files["inactive_file"])
    except (OSError, ValueError, KeyError):  # no limit
        return free


def _fields(path: Path) -> dict[str, int]:
    """Names and numbers of a file with one of each a line."""
    found = re.findall(r"^(\w+):? +(\d+)", path.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def duration(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3.5 hours, 2.1 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "hours")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'hours' else 0}f} {name}"
    return f"{seconds / 86_400:.1f} days"


def _with_bar(pairs: Sequence[Pair], scores: int) -> Iterator[Pair]:
    with progress_bar(total=scores, unit="score", unit_scale=True, desc="ranking") as bar:
        for images, texts in pairs:
            yield images, texts
            bar.update(size(images) * size(texts))


def _measure(counting: Counting) -> tuple[float, float]:
    """Seconds a score and seconds a row of vectors, the latter read from wherever the embeddings are."""
    spent = {"score": 0.0, "row": 0.0}
    counts = {"score": 0, "row": 0}
    samples = [
        (_sample(counting, counting.images, 16, part), _sample(counting, counting.texts, 4, part))
        for part in (0, *range(_SAMPLES))
    ]
    for number, pair in enumerate(samples):
        start = time.perf_counter()
        counting.build(pair)
        built = time.perf_counter()
        counting.count(pair, keep=False)
        _synchronize(counting)
        if number:  # the first one pays for what is set up once
            spent["row"] += built - start
            spent["score"] += time.perf_counter() - built
            counts["row"] += size(pair[0]) + size(pair[1])
            counts["score"] += size(pair[0]) * size(pair[1])
    counting.forget()
    return spent["score"] / counts["score"], spent["row"] / counts["row"]


def _sample(counting: Counting, side: Side, tiles: int, part: int) -> slice:
    """A few consecutive tiles; part: 0 for the first ones, the largest for the last ones."""
    every = counting.tiles(side)
    start = (len(every) - min(tiles, len(every))) * part // (_SAMPLES - 1)
    return slice(every[start].start, every[min(start + tiles, len(every)) - 1].stop)


def _diagonal(counting: Counting) -> tuple[int, int]:
    """Scores of the tiles that hold positives, and rows of the blocks they are in."""
    width = counting.layout.tile[1]
    scores = 0
    for tile in counting.tiles(counting.images):
        begin, end = counting.images.reach(tile)
        scores += size(tile) * (-(-end // width) - begin // width) * width
    return scores, len(counting.images) + len(counting.texts)


def _memory(counting: Counting) -> int:
    """Bytes at the peak beyond what was given: the blocks that are kept, the threads' tiles, numbers of every item."""
    images, texts = counting.images, counting.texts
    itemsize = counting.dtype.itemsize
    tiles = torch.get_num_threads() * int(np.prod(counting.layout.tile)) * (2 * itemsize + 1)
    items = (len(images) + len(texts)) * 8 * _ARRAYS_PER_ITEM
    positives = 2 * len(images.ranks) * 8 * _ARRAYS_PER_POSITIVE
    return int(_LIBRARIES + counting.block_bytes + tiles + items + positives)


def _synchronize(counting: Counting) -> None:
    if counting.device.type == "cuda":
        torch.cuda.synchronize(counting.device)
