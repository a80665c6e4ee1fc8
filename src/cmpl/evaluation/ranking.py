"""Where every positive ranks, exactly, in both directions, from one matrix product in tiles.

The matrix of all scores is never held. It is computed tile by tile; in each tile the scores that reach a positive's
score are counted, along the rows for the images and along the columns for the texts, and the count over all tiles is
the positive's rank. That needs the positives' scores before the counting starts, read from the very numbers that are
counted: another way to compute the same dot product differs in the last bit and makes or breaks ties. So both sides
are sorted by label, which gathers all positives in the few tiles along the diagonal, and these are computed twice.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmpl.evaluation.inputs import EvaluationInputError, check_embeddings, check_labels, check_matches

Metric = Literal["cosine", "euclidean"]

# A tile of float32 scores should stay in the cache while it is counted. Comparisons are summed eight at a time as the
# bytes of an int64, which holds while no byte passes 255: at most 255 rows and 8 * 255 columns.
_TILE = (240, 2016)
_LARGEST_TILE = (255, 8 * 255)
# Matrix products treat the rows and columns left over from their inner kernels with other kernels, which round
# differently; in tiles of multiples of 24 equal embeddings get equal scores wherever they lie (measured with MKL,
# float32 and float64), so that duplicates tie.
_GRAIN = 24
# One comparison of a tile for each positive, or one sort of it for all: measured to break even near 120.
_SORT_FROM = 120
_CHUNK = 1024


@dataclass(frozen=True)
class PositiveRanks:
    """The ranks of every query's positives among its gallery, 1 being the best.

    A positive ranks behind every other item of equal score: its rank is the number of gallery items, itself included,
    that score at least as high. So ties count against the model, and neither the order of the gallery nor that of the
    positives matters. Positives that tie with each other share the later rank, with all of them as hits.

    ranks [pairs]: ascending within a query; those of query i are ranks[offsets[i] : offsets[i + 1]].
    offsets [queries + 1]: every query has at least one positive.
    gallery_size: number of items ranked.
    """

    ranks: NDArray[np.int64]
    offsets: NDArray[np.int64]
    gallery_size: int

    @property
    def positives(self) -> NDArray[np.int64]:
        """Number of positives of each query [queries]."""
        return np.diff(self.offsets)

    @cached_property
    def hits(self) -> NDArray[np.int64]:
        """Number of the query's positives at or before each rank [pairs]."""
        query = np.repeat(np.arange(len(self.offsets) - 1), self.positives)
        ends = np.flatnonzero(np.append((np.diff(self.ranks) != 0) | (np.diff(query) != 0), True))
        hits: NDArray[np.int64] = np.repeat(ends, np.diff(ends, prepend=-1)) - self.offsets[query] + 1
        return hits

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """Number of each positive among those of its query, from 1 [pairs]."""
        return np.arange(len(self.ranks)) - np.repeat(self.offsets[:-1], self.positives) + 1

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Ranks in one full order, no two alike: negatives of a tie go first, its positives follow one by one [pairs].

        The places of a query ascend; without tied positives they are `ranks`.
        """
        return self.ranks - self.hits + self.numbers

    @property
    def first(self) -> NDArray[np.int64]:
        """Rank at which each query meets a positive [queries]: one more than the negatives that reach the best one.

        Differs from the smallest of `ranks` only where positives tie for the best: whichever goes first is a hit.
        """
        best = self.offsets[:-1]
        return self.ranks[best] - self.hits[best] + 1

    @property
    def last(self) -> NDArray[np.int64]:
        """Rank by which each query has met all of its positives [queries]."""
        return self.ranks[self.offsets[1:] - 1]


def rank_positives(
    image_embeddings: Tensor | NDArray[Any],
    text_embeddings: Tensor | NDArray[Any],
    image_labels: Tensor | NDArray[Any],
    text_labels: Tensor | NDArray[Any],
    metric: Metric = "cosine",
    tile: tuple[int, int] = _TILE,
) -> tuple[PositiveRanks, PositiveRanks]:
    """Rank the positives of every image among the texts, and of every text among the images.

    image_embeddings [n, d], text_embeddings [m, d]: the scores are computed in the wider of their types.
    image_labels [n], text_labels [m]: integers; equal means positive.
    metric: "cosine" (a zero row has cosine 0 with everything) or "euclidean" (the smaller distance ranks first).
    tile: images and texts a tile of scores holds, at most 255 and 2,040; no result depends on it.
    Returns the ranks image to text and text to image. Besides a copy of the embeddings, memory grows with the number
    of matching pairs, not with n * m. Raises EvaluationInputError for what can't be ranked, naming the row.
    """
    images = check_embeddings(image_embeddings, "image_embeddings")
    texts = check_embeddings(text_embeddings, "text_embeddings")
    if images.shape[1] != texts.shape[1]:
        raise EvaluationInputError(
            f"image_embeddings have dimension {images.shape[1]} and text_embeddings {texts.shape[1]}; expected the same"
        )
    image_ids = check_labels(image_labels, len(images), "image_labels")
    text_ids = check_labels(text_labels, len(texts), "text_labels")
    check_matches(image_ids, text_ids, "image_embeddings", "text_embeddings")
    check_matches(text_ids, image_ids, "text_embeddings", "image_embeddings")
    if metric not in get_args(Metric):
        raise EvaluationInputError(f"metric is {metric!r}; expected 'cosine' or 'euclidean'")
    dtype = torch.float64 if np.float64 in (images.dtype, texts.dtype) else torch.float32
    rows = _Side(image_ids, text_ids, min(tile[0], _LARGEST_TILE[0]), dtype)
    columns = _Side(text_ids, image_ids, min(tile[1], _LARGEST_TILE[1]), dtype)
    product = _Product(
        _vectors(images, rows.order, metric, dtype, other=False),
        _vectors(texts, columns.order, metric, dtype, other=True),
    )
    _read_positives(product, rows, columns)
    _count(product, rows, columns)
    return rows.result(len(texts)), columns.result(len(images))


def score_blocks(
    images: NDArray[Any], texts: NDArray[Any], metric: Metric, *, of_texts: bool
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Scores of some images with all texts [images, m], or of_texts of some texts with all images [texts, n].

    images [n, d], texts [m, d]: checked. "euclidean" gives minus half the squared distance. The numbers are those that
    `rank_positives` compares, so ties are the same; they hold until the next block.
    """
    dtype = torch.float64 if np.float64 in (images.dtype, texts.dtype) else torch.float32
    product = _Product(
        _vectors(images, np.arange(len(images)), metric, dtype, other=False),
        _vectors(texts, np.arange(len(texts)), metric, dtype, other=True),
    )
    count = len(texts) if of_texts else len(images)
    for start in range(0, count, _GRAIN):
        some = slice(start, min(start + _GRAIN, count))
        if of_texts:
            scores = product.tile(slice(0, len(images)), some)[: len(images), : some.stop - start].T
        else:
            scores = product.tile(some, slice(0, len(texts)))[: some.stop - start, : len(texts)]
        yield some, scores.numpy()


class _Side:
    """The images or the texts, sorted by label, with the score and the rank of each of their positives.

    Positives of item i are the items first[i] : first[i] + positives[i] of the other side, and stand at
    offsets[i] : offsets[i + 1] of the flat arrays `scores` and `ranks`.
    """

    def __init__(self, labels: NDArray[np.int64], other: NDArray[np.int64], tile: int, dtype: torch.dtype) -> None:
        self.order = np.argsort(labels, kind="stable")
        labels, other = labels[self.order], np.sort(other)
        first = np.searchsorted(other, labels, side="left")
        positives = np.searchsorted(other, labels, side="right") - first
        self.first, self.positives = torch.from_numpy(first), torch.from_numpy(positives)
        self.offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(positives)]))
        self.scores = torch.empty(int(self.offsets[-1]), dtype=dtype)
        self.ranks = torch.zeros(len(self.scores), dtype=torch.int64)
        grains = max(1, tile // _GRAIN)
        self.tiles = [
            slice(start, min(start + grains * _GRAIN, len(labels))) for start in range(0, len(labels), grains * _GRAIN)
        ]

    def thresholds(self, tile: slice) -> Tensor:
        """Scores of the positives of a tile's items [items, padded to the tile's grain; most positives], inf beyond."""
        positives = self.positives[tile]
        out = self.scores.new_full((_padded(len(positives)), int(positives.max())), torch.inf)
        out[: len(positives)][self._filled(tile)] = self.scores[self.offsets[tile.start] : self.offsets[tile.stop]]
        return out

    def store(self, tile: slice, counts: Tensor) -> None:
        """Keep the ranks of a tile's items, laid out as their thresholds were."""
        filled = self._filled(tile)
        self.ranks[self.offsets[tile.start] : self.offsets[tile.stop]] = counts[: len(filled)][filled]

    def _filled(self, tile: slice) -> Tensor:
        positives = self.positives[tile]
        return torch.arange(int(positives.max())) < positives[:, None]

    def result(self, gallery_size: int) -> PositiveRanks:
        """The ranks in the order the items were given in."""
        query = np.repeat(self.order, self.positives.numpy())
        ranks = self.ranks.numpy()[np.lexsort((self.ranks.numpy(), query))]
        offsets = np.zeros(len(self.order) + 1, dtype=np.int64)
        np.cumsum(np.bincount(query, minlength=len(self.order)), out=offsets[1:])
        return PositiveRanks(ranks, offsets, gallery_size)


class _Product:
    """Tiles of the score matrix, those of a thread each into the same memory."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.local = threading.local()

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Scores of a tile [rows, columns], both padded to the grain with minus infinity."""
        height, width = _padded(rows.stop - rows.start), _padded(columns.stop - columns.start)
        memory: Tensor | None = getattr(self.local, "memory", None)
        if memory is None or len(memory) < height * width:
            memory = self.local.memory = self.rows.new_empty(height * width)
        scores = memory[: height * width].view(height, width)
        torch.mm(self.rows[rows.start :][:height], self.columns[columns.start :][:width].T, out=scores)
        scores[rows.stop - rows.start :] = -torch.inf
        scores[:, columns.stop - columns.start :] = -torch.inf
        return scores


def _padded(count: int) -> int:
    return -(-count // _GRAIN) * _GRAIN


def _vectors(
    embeddings: NDArray[Any], order: NDArray[np.int64], metric: Metric, dtype: torch.dtype, *, other: bool
) -> Tensor:
    """Rows in the given order whose dot products with those of the other side are the scores, zero rows at the end.

    Cosine: rows of unit length. Euclidean: x.z - |x|^2/2 - |z|^2/2, minus half the squared distance, as one product of
    rows longer by two: (x, -|x|^2/2, 1) and (z, 1, -|z|^2/2).
    """
    dimension = embeddings.shape[1]
    vectors = torch.zeros(_padded(len(order)), dimension + 2 * (metric == "euclidean"), dtype=dtype)

    def fill(start: int) -> None:
        rows = torch.from_numpy(embeddings[order[start : start + _CHUNK]]).to(dtype)
        out = vectors[start : start + len(rows)]
        if metric == "cosine":
            # The square of a large or small float32 leaves its range; that of a number relative to the largest doesn't.
            rows /= rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
            torch.div(rows, torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=0.5), out=out)
        else:
            out[:, :dimension] = rows
            out[:, dimension + other] = rows.square().sum(1) / -2
            out[:, dimension + (not other)] = 1
            if not out.isfinite().all():
                raise EvaluationInputError(
                    f"embeddings up to {rows.abs().max():.3g} have distances beyond {dtype}; "
                    "expected smaller numbers, scale them or give float64"
                )

    _in_threads(fill, [(start,) for start in range(0, len(order), _CHUNK)])
    return vectors


def _read_positives(product: _Product, rows: _Side, columns: _Side) -> None:
    """Fill in the scores of all positives, from the tiles that hold them."""

    def read(row_tile: slice, column_tile: slice) -> None:
        first = rows.first[row_tile]
        last = first + rows.positives[row_tile]
        if column_tile.stop <= first[0] or column_tile.start >= last[-1]:
            return
        scores = product.tile(row_tile, column_tile)
        start = first.clamp(min=column_tile.start)
        count = (last.clamp(max=column_tile.stop) - start).clamp(min=0)
        row = torch.repeat_interleave(count)
        column = start[row] + torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        values = scores[row, column - column_tile.start]
        row += row_tile.start
        rows.scores[rows.offsets[row] + column - rows.first[row]] = values
        columns.scores[columns.offsets[column] + row - columns.first[column]] = values

    _in_threads(read, _pairs(rows, columns))


def _count(product: _Product, rows: _Side, columns: _Side) -> None:
    """Fill in the ranks: for each positive the number of scores at least as high as its own."""
    row_thresholds = {tile.start: rows.thresholds(tile) for tile in rows.tiles}
    column_thresholds = {tile.start: columns.thresholds(tile).T.contiguous() for tile in columns.tiles}
    row_counts = {start: torch.zeros(t.shape, dtype=torch.int64) for start, t in row_thresholds.items()}
    column_counts = {start: torch.zeros(t.shape, dtype=torch.int64) for start, t in column_thresholds.items()}
    adding = threading.Lock()

    def count(row_tile: slice, column_tile: slice) -> None:
        scores = product.tile(row_tile, column_tile)
        along_rows = _count_along_rows(scores, row_thresholds[row_tile.start])
        along_columns = _count_along_columns(scores, column_thresholds[column_tile.start])
        with adding:
            row_counts[row_tile.start] += along_rows
            column_counts[column_tile.start] += along_columns

    _in_threads(count, _pairs(rows, columns))
    for tile in rows.tiles:
        rows.store(tile, row_counts[tile.start])
    for tile in columns.tiles:
        columns.store(tile, column_counts[tile.start].T)


def _pairs(rows: _Side, columns: _Side) -> list[tuple[slice, slice]]:
    return [(row_tile, column_tile) for column_tile in columns.tiles for row_tile in rows.tiles]


def _in_threads(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Do each piece of work on one of as many threads as torch is set to use.

    All threads on one piece would wait for each other after every operation, which costs ten times the work itself
    when other processes use the cores too.
    """
    threads = torch.get_num_threads()
    if min(threads, len(arguments)) == 1:
        for each in arguments:
            work(*each)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(lambda each: work(*each), arguments))
    finally:
        torch.set_num_threads(threads)


def _count_along_rows(scores: Tensor, thresholds: Tensor) -> Tensor:
    """For scores [r, c] and thresholds [r, k], how many scores of the row reach each threshold [r, k]."""
    if thresholds.shape[1] >= _SORT_FROM:
        return scores.shape[1] - torch.searchsorted(scores.sort(1).values, thresholds)
    words = torch.stack([reached.sum(1) for reached in _reached(scores, thresholds.T[:, :, None])], 1)
    return words.view(torch.uint8).view(*thresholds.shape, 8).sum(2)


def _count_along_columns(scores: Tensor, thresholds: Tensor) -> Tensor:
    """For scores [r, c] and thresholds [k, c], how many scores of the column reach each threshold [k, c]."""
    if len(thresholds) >= _SORT_FROM:
        return len(scores) - torch.searchsorted(scores.T.contiguous().sort(1).values, thresholds.T.contiguous()).T
    words = torch.stack([reached.sum(0) for reached in _reached(scores, thresholds)])
    return words.view(torch.uint8).to(torch.int64)


def _reached(scores: Tensor, thresholds: Tensor) -> Iterator[Tensor]:
    """For each threshold, which scores reach it: bytes 0 and 1, eight to an int64 [r, c / 8], until the next."""
    reached = torch.empty(scores.shape, dtype=torch.bool)
    for threshold in thresholds:
        torch.ge(scores, threshold, out=reached)
        yield reached.view(torch.int64)
