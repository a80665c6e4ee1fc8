"""Exact ranks by counting: how many scores reach each positive's, tile by tile of a score matrix that is never held.

Both sides are sorted by label, which gathers all positives in the few tiles along the diagonal. A first pass over these
reads the positives' scores, a second over all tiles counts what reaches them, along the rows for the images and along
the columns for the texts. Where the scores of a tile come from is a subclass's matter: a product of embeddings
(`products`), or a matrix that was given (`similarities`).
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosspair.evaluation.inputs import EvaluationInputError

Metric = Literal["cosine", "euclidean", "similarity"]  # the last is of a matrix that was given
Direction = Literal["image_to_text", "text_to_image"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Pair = tuple[slice, slice]  # of image and text rows, in the order of their labels

# One comparison of a tile for each positive, or one sort of it for all: along rows they break even near 180.
_SORT_FROM = 180


@dataclass(frozen=True)
class Layout:
    """The tiling of the score matrix, images first. No result depends on it.

    tile: items of a tile. grain: what the edges of a tile are padded to. block: bytes of the vectors held at once.
    """

    tile: tuple[int, int]
    grain: tuple[int, int]
    block: tuple[int, int]

    @classmethod
    def of(cls, device: torch.device, images: int, texts: int, tile: tuple[int, int] | None = None) -> "Layout":
        """A tiling for a device: on the CPU tiles that stay in the cache, elsewhere larger ones, all of one shape.

        Matrix products treat the rows and columns left over from their inner kernels with other kernels, which round
        differently; in tiles of multiples of 24 equal embeddings get equal scores wherever they lie (measured with
        MKL, float32 and float64), so that duplicates tie. On the CPU comparisons are summed eight at a time as the
        bytes of an int64, which holds while no byte passes 255: at most 255 rows and 8 * 255 columns.
        """
        if device.type == "cpu":
            rows, columns = tile or (240, 2016)
            return cls((_down(min(rows, 255)), _down(min(columns, 8 * 255))), (24, 24), (128 << 20, 64 << 20))
        rows, columns = (min(8192, -(-items // 256) * 256) for items in (images, texts))
        return cls((rows, columns), (rows, columns), (512 << 20, 512 << 20))


class Side:
    """The images or the texts, sorted by label, with the score and the rank of each of their positives.

    Positives of item i are the items first[i] : first[i] + positives[i] of the other side, and stand at
    offsets[i] : offsets[i + 1] of the flat arrays `scores` and `ranks`. An item without one is no query.
    above [items]: how many items score above the best positive. queried: whether ranks are counted at all.
    """

    def __init__(
        self, labels: NDArray[np.int64], other: NDArray[np.int64], dtype: torch.dtype, *, is_text: bool, queried: bool
    ) -> None:
        self.is_text, self.queried = is_text, queried
        self.order = np.argsort(labels, kind="stable")
        labels, other = labels[self.order], np.sort(other)
        first = np.searchsorted(other, labels, side="left")
        positives = np.searchsorted(other, labels, side="right") - first
        self.first, self.positives = torch.from_numpy(first), torch.from_numpy(positives)
        self.offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(positives)]))
        self.ranks = torch.zeros(int(self.offsets[-1]), dtype=torch.int64)
        self.above = torch.zeros(len(positives), dtype=torch.int64)
        self.scores = torch.empty(len(self.ranks), dtype=dtype)
        self.next_above = torch.full((len(positives),), torch.inf, dtype=dtype)

    def __len__(self) -> int:
        return len(self.order)

    def reach(self, some: slice) -> tuple[int, int]:
        """First and last position of the positives of some items on the other side."""
        return int(self.first[some.start]), int(self.first[some.stop - 1] + self.positives[some.stop - 1])

    def find_best(self) -> None:
        """The least number above the best positive's score, for each item: what reaches it scores above."""
        best = self.scores.new_full((len(self),), torch.inf)
        best.scatter_reduce_(0, torch.repeat_interleave(self.positives), self.scores, "amax", include_self=False)
        self.next_above = torch.nextafter(best, best.new_tensor(torch.inf))

    def thresholds(self, tile: slice, height: int) -> Tensor:
        """What scores of a tile's items are counted that reach it [height, 1 + most positives], inf beyond.

        First the least number above the best positive's score, then the scores of the positives.
        """
        positives = self.positives[tile]
        out = self.scores.new_full((height, 1 + int(positives.max())), torch.inf)
        out[: len(positives), 0] = self.next_above[tile]
        out[: len(positives), 1:][self._filled(tile)] = self.scores[self.offsets[tile.start] : self.offsets[tile.stop]]
        return out

    def add(self, tile: slice, counts: Tensor) -> None:
        """Add to the ranks of a tile's items, laid out as their thresholds were."""
        filled = self._filled(tile)
        self.above[tile] += counts[: len(filled), 0]
        self.ranks[self.offsets[tile.start] : self.offsets[tile.stop]] += counts[: len(filled), 1:][filled]

    def _filled(self, tile: slice) -> Tensor:
        positives = self.positives[tile]
        return torch.arange(int(positives.max())) < positives[:, None]


class Counting(ABC):
    """The ranks of all positives in both directions, counted pair by pair of blocks; a subclass has the scores.

    images, texts: `ranks` of both are whole once `read_positives` and then `count` for each of `pairs()` were called.
    given: the name of what the scores come from.
    """

    given: ClassVar[str]

    def __init__(
        self,
        image_labels: NDArray[np.int64],
        text_labels: NDArray[np.int64],
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        tile: tuple[int, int] | None = None,
        directions: Sequence[Direction] = DIRECTIONS,
    ) -> None:
        """Labels [n] and [m] that were checked. dtype: of the scores. directions: those that ranks are counted in."""
        self.labels, self.dtype, self.device = (image_labels, text_labels), dtype, torch.device(device)
        self.layout = Layout.of(self.device, len(image_labels), len(text_labels), tile)
        queried = [direction in directions for direction in DIRECTIONS]
        self.images = Side(image_labels, text_labels, dtype, is_text=False, queried=queried[0])
        self.texts = Side(text_labels, image_labels, dtype, is_text=True, queried=queried[1])
        self.local = threading.local()

    @abstractmethod
    def build(self, pair: Pair) -> None:
        """Have at hand what the scores of a pair of blocks are made of; what is kept isn't built again."""

    @abstractmethod
    def write_scores(self, pair: Pair, images: slice, texts: slice, out: Tensor) -> None:
        """Write the scores of a tile of a pair that was built [height, width]; what is padded may hold anything."""

    @abstractmethod
    def block_items(self, side: Side) -> int:
        """The largest number of items of a block: whole tiles."""

    @abstractmethod
    def forget(self) -> None:
        """Free what is kept."""

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """Memory of what is kept, at its peak."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What is scored, after the numbers of images and texts."""

    @property
    def counts(self) -> dict[str, Tensor]:
        """All that is counted, by name: what makes up the ranks, and nothing else has to be kept of a part."""
        sides = [(name, side) for name, side in zip(DIRECTIONS, (self.images, self.texts), strict=True) if side.queried]
        return {**{name: side.ranks for name, side in sides}, **{f"above_{name}": side.above for name, side in sides}}

    def pairs(self, shard: tuple[int, int] = (1, 1)) -> list[Pair]:
        """Pairs of blocks whose scores are to be counted, by shard (number, of how many): each in exactly one.

        The side of more tiles is divided, the other one is whole in every shard.
        """
        images, texts = self.tiles(self.images), self.tiles(self.texts)
        divided = images if len(images) >= len(texts) else texts
        begin, end = (len(divided) * number // shard[1] for number in (shard[0] - 1, shard[0]))
        (image_blocks, text_blocks) = (
            _blocks(tiles[begin:end] if tiles is divided else tiles, self.block_items(side))
            for tiles, side in ((images, self.images), (texts, self.texts))
        )
        return [(some_images, some_texts) for some_images in image_blocks for some_texts in text_blocks]

    def tiles(self, side: Side, block: slice | None = None) -> list[slice]:
        """Tiles of a block, of all items without one."""
        step, whole = self.layout.tile[side.is_text], block or slice(0, len(side))
        return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step)]

    def read_positives(self) -> None:
        """Fill in the scores of all positives, from the tiles that hold them."""
        for pair in self.pairs():
            if _overlap(self.images.reach(pair[0]), pair[1]):
                self._for_each_tile(pair, self._read, only_positives=True)
        for side in (self.images, self.texts):
            side.find_best()

    def count(self, pair: Pair, *, keep: bool = True) -> None:
        """Add the scores of a pair of blocks to the ranks. keep: False counts for the time that it takes."""
        images, texts = self._thresholds(self.images, pair[0]), self._thresholds(self.texts, pair[1])
        image_counts, text_counts = (
            {start: torch.zeros_like(t, dtype=torch.int64) for start, t in side.items()} for side in (images, texts)
        )
        adding = threading.Lock()

        def count(scores: Tensor, some_images: slice, some_texts: slice) -> None:
            along_rows = _count_along_rows(scores, images[some_images.start]) if images else None
            along_columns = _count_along_columns(scores, texts[some_texts.start]) if texts else None
            with adding:
                if along_rows is not None:
                    image_counts[some_images.start] += along_rows
                if along_columns is not None:
                    text_counts[some_texts.start] += along_columns

        self._for_each_tile(pair, count)
        if keep:
            for side, block, counts in ((self.images, pair[0], image_counts), (self.texts, pair[1], text_counts)):
                for tile in self.tiles(side, block):
                    if side.queried:
                        found = counts[tile.start].cpu()
                        side.add(tile, found.T if side.is_text else found)

    def _for_each_tile(
        self, pair: Pair, work: Callable[[Tensor, slice, slice], None], *, only_positives: bool = False
    ) -> None:
        self.build(pair)

        def one(images: slice, texts: slice) -> None:
            work(self._scores(pair, images, texts), images, texts)

        image_tiles, text_tiles = self.tiles(self.images, pair[0]), self.tiles(self.texts, pair[1])
        if only_positives:
            reached = ((images, self.images.reach(images)) for images in image_tiles)
            tiles = [(images, texts) for images, reach in reached for texts in text_tiles if _overlap(reach, texts)]
        else:
            tiles = [(images, texts) for texts in text_tiles for images in image_tiles]
        if self.device.type == "cpu":
            in_threads(one, tiles)
        else:
            for tile in tiles:
                one(*tile)

    def _scores(self, pair: Pair, images: slice, texts: slice) -> Tensor:
        """Scores of a tile [images, texts], both padded with minus infinity; those of a thread in the same memory."""
        height, width = self.padded(self.images, images), self.padded(self.texts, texts)
        memory: Tensor | None = getattr(self.local, "memory", None)
        if memory is None or len(memory) < height * width:
            memory = self.local.memory = torch.empty(height * width, dtype=self.dtype, device=self.device)
        scores = memory[: height * width].view(height, width)
        self.write_scores(pair, images, texts, scores)
        scores[size(images) :] = -torch.inf
        scores[:, size(texts) :] = -torch.inf
        return scores

    def _read(self, scores: Tensor, some_images: slice, some_texts: slice) -> None:
        images, texts = self.images, self.texts
        first = images.first[some_images]
        last = first + images.positives[some_images]
        start = first.clamp(min=some_texts.start)
        count = (last.clamp(max=some_texts.stop) - start).clamp(min=0)
        row = torch.repeat_interleave(count)
        column = start[row] + torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        values = scores[row.to(self.device), (column - some_texts.start).to(self.device)].cpu()
        row += some_images.start
        images.scores[images.offsets[row] + column - images.first[row]] = values
        texts.scores[texts.offsets[column] + row - texts.first[column]] = values

    def _thresholds(self, side: Side, block: slice) -> dict[int, Tensor]:
        """Thresholds of a block's tiles by their first item, along the side's own axis; none if it isn't queried."""
        if not side.queried:
            return {}
        found = {tile.start: side.thresholds(tile, self.padded(side, tile)) for tile in self.tiles(side, block)}
        return {start: (t.T.contiguous() if side.is_text else t).to(self.device) for start, t in found.items()}

    def padded(self, side: Side, tile: slice) -> int:
        """The number of items of a tile with what it is padded with."""
        grain = self.layout.grain[side.is_text]
        return -(-size(tile) // grain) * grain


def check_directions(directions: Sequence[Direction]) -> None:
    """Raise EvaluationInputError unless these are one or both of DIRECTIONS."""
    if not isinstance(directions, list | tuple) or not directions or not set(directions) <= set(DIRECTIONS):
        raise EvaluationInputError(
            f"directions are {directions!r}; expected a tuple of 'image_to_text' and 'text_to_image', or of one of them"
        )


def in_threads(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Do each piece of work on one of as many threads as torch is set to use, and on a single one.

    All threads on one piece would wait for each other after every operation, which costs ten times the work itself
    when other processes use the cores too; and a product that is divided among threads may round in other ways.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for each in arguments:
            work(*each)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(lambda each: work(*each), arguments):
                pass
    finally:
        torch.set_num_threads(threads)


def _count_along_rows(scores: Tensor, thresholds: Tensor) -> Tensor:
    """For scores [r, c] and thresholds [r, k], how many scores of the row reach each threshold [r, k]."""
    if thresholds.shape[1] >= _SORT_FROM:
        return scores.shape[1] - torch.searchsorted(scores.sort(1).values, thresholds)
    if _too_large_for_bytes(scores):
        return torch.stack([(scores >= threshold[:, None]).sum(1) for threshold in thresholds.T], 1)
    words = torch.stack([reached.sum(1) for reached in _reached(scores, thresholds.T[:, :, None])], 1)
    return words.view(torch.uint8).view(*thresholds.shape, 8).sum(2)


def _count_along_columns(scores: Tensor, thresholds: Tensor) -> Tensor:
    """For scores [r, c] and thresholds [k, c], how many scores of the column reach each threshold [k, c]."""
    if len(thresholds) >= _SORT_FROM:
        return len(scores) - torch.searchsorted(scores.T.contiguous().sort(1).values, thresholds.T.contiguous()).T
    if _too_large_for_bytes(scores):
        return torch.stack([(scores >= threshold).sum(0) for threshold in thresholds])
    words = torch.stack([reached.sum(0) for reached in _reached(scores, thresholds)])
    return words.view(torch.uint8).to(torch.int64)


def _too_large_for_bytes(scores: Tensor) -> bool:
    return scores.shape[0] > 255 or scores.shape[1] > 8 * 255


def _reached(scores: Tensor, thresholds: Tensor) -> Iterator[Tensor]:
    """For each threshold, which scores reach it: bytes 0 and 1, eight to an int64 [r, c / 8], until the next.

    numpy compares, in half the time that torch takes.
    """
    reached = torch.empty(scores.shape, dtype=torch.bool)
    ours, out = scores.numpy(), reached.numpy()
    for threshold in thresholds.numpy():
        np.greater_equal(ours, threshold, out=out)
        yield reached.view(torch.int64)


def size(some: slice) -> int:
    """The number of items in a slice."""
    return int(some.stop - some.start)


def _overlap(reach: tuple[int, int], some: slice) -> bool:
    return bool(reach[0] < some.stop and some.start < reach[1])


def _blocks(tiles: Sequence[slice], items: int) -> list[slice]:
    """Consecutive tiles together, up to a number of items."""
    if not tiles:
        return []
    starts = range(tiles[0].start, tiles[-1].stop, items)
    return [slice(start, min(start + items, tiles[-1].stop)) for start in starts]


def _down(count: int) -> int:
    return max(24, count // 24 * 24)
