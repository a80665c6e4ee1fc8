"""Exact ranks of all positives in both directions, from one matrix product in tiles.

The matrix of all scores is never held: for each positive the scores that reach its own are counted, tile by tile. Its
own score is read from the very numbers that are counted, as another way to compute the same dot product differs in the
last bit and makes or breaks ties. `counting` says how.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosspair.evaluation.counting import DIRECTIONS, Counting, Direction, Metric, Side, check_directions
from crosspair.evaluation.inputs import EvaluationInputError, check_embeddings, check_labels, check_matches
from crosspair.evaluation.products import ProductCounting, score_type, vectors_of

__all__ = [
    "DIRECTIONS",
    "Direction",
    "Metric",
    "PositiveRanks",
    "count_ranks",
    "prepare_counting",
    "rank_positives",
    "ranks_of",
    "score_blocks",
]

_GRAIN = 24  # see counting.Layout


@dataclass(frozen=True)
class PositiveRanks:
    """The ranks of every query's positives among its gallery, 1 being the best.

    A positive ranks behind every other item of equal score: its rank is the number of gallery items, itself included,
    that score at least as high. So ties count against the model, and neither the order of the gallery nor that of the
    positives matters. Positives that tie with each other share the later rank, with all of them as hits.

    ranks [pairs]: ascending within a query; those of query i are ranks[offsets[i] : offsets[i + 1]].
    offsets [queries + 1]: every query has at least one positive.
    gallery_size: number of items ranked.
    queries [queries]: rows of the query side, ascending; all of them unless some have no positive.
    optimistic [queries]: rank at which each query meets a positive if every tie goes for the model: one more than the
    items that score above its best positive.
    """

    ranks: NDArray[np.int64]
    offsets: NDArray[np.int64]
    gallery_size: int
    queries: NDArray[np.int64]
    optimistic: NDArray[np.int64]

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
    tile: tuple[int, int] | None = None,
    *,
    device: str = "cpu",
    progress: bool = False,
) -> tuple[PositiveRanks, PositiveRanks]:
    """Rank the positives of every image among the texts, and of every text among the images.

    image_embeddings [n, d], text_embeddings [m, d]: the scores are computed in the wider of their types, float32 at
    least. Mapped files (numpy.load with mmap_mode="r") are read block by block.
    image_labels [n], text_labels [m]: integers; equal means positive.
    metric: "cosine" (a zero row has cosine 0 with everything) or "euclidean" (the smaller distance ranks first).
    tile: images and texts a tile of scores holds on the CPU, at most 255 and 2,040; no result depends on it.
    device: where scores are computed and counted, "cpu" or "cuda".
    progress: before a long job say on stderr what time and memory it needs, and show a bar.
    Returns the ranks image to text and text to image. Memory holds two blocks of vectors and grows with the number of
    matching pairs, not with n * m. Raises EvaluationInputError for what can't be ranked, naming the row.
    """
    counting = prepare_counting(image_embeddings, text_embeddings, image_labels, text_labels, metric, tile, device)
    ranks = count_ranks(counting, progress=progress)
    return ranks["image_to_text"], ranks["text_to_image"]


def count_ranks(counting: Counting, *, progress: bool = False) -> dict[Direction, PositiveRanks]:
    """Count everything; the ranks by direction. progress: as `rank_positives` takes it."""
    pairs = counting.pairs()
    if progress:
        from crosspair.evaluation.cost import announced

        steps = announced(counting, pairs)
    else:
        steps = iter(pairs)
    counting.read_positives()
    for pair in steps:
        counting.count(pair)
    return ranks_of(counting)


def prepare_counting(
    image_embeddings: Tensor | NDArray[Any],
    text_embeddings: Tensor | NDArray[Any],
    image_labels: Tensor | NDArray[Any],
    text_labels: Tensor | NDArray[Any],
    metric: Metric = "cosine",
    tile: tuple[int, int] | None = None,
    device: str = "cpu",
    *,
    directions: Sequence[Direction] = DIRECTIONS,
    distractors: bool = False,
) -> ProductCounting:
    """Check what `rank_positives` takes; nothing is computed yet.

    directions: those that ranks are counted in. distractors: whether rows without a match are gallery items that are
    no queries; otherwise they are refused.
    """
    check_directions(directions)
    images = check_embeddings(image_embeddings, "image_embeddings")
    texts = check_embeddings(text_embeddings, "text_embeddings")
    if images.shape[1] != texts.shape[1]:
        raise EvaluationInputError(
            f"image_embeddings have dimension {images.shape[1]} and text_embeddings {texts.shape[1]}; expected the same"
        )
    image_ids = check_labels(image_labels, len(images), "image_labels")
    text_ids = check_labels(text_labels, len(texts), "text_labels")
    check_matches(image_ids, text_ids, "image_embeddings", "text_embeddings", distractors=distractors)
    check_matches(text_ids, image_ids, "text_embeddings", "image_embeddings", distractors=distractors)
    if metric not in ("cosine", "euclidean"):
        raise EvaluationInputError(f"metric is {metric!r}; expected 'cosine' or 'euclidean'")
    _check_device(device)
    return ProductCounting(images, texts, image_ids, text_ids, metric, device=device, tile=tile, directions=directions)


def ranks_of(counting: Counting) -> dict[Direction, PositiveRanks]:
    """The counted ranks by direction, in the order that the items were given in."""
    sides = zip(DIRECTIONS, (counting.images, counting.texts), (counting.texts, counting.images), strict=True)
    return {direction: _in_given_order(side, len(other)) for direction, side, other in sides if side.queried}


def score_blocks(
    images: NDArray[Any], texts: NDArray[Any], metric: Metric, *, of_texts: bool
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Scores of some images with all texts [images, m], or of_texts of some texts with all images [texts, n].

    images [n, d], texts [m, d]: checked. "euclidean" gives minus half the squared distance. The numbers are those that
    `rank_positives` compares on the CPU, so ties are the same; they hold until the next block.
    """
    dtype = score_type(images, texts)
    rows, columns = (
        vectors_of(side, np.arange(len(side)), metric, dtype, -(-len(side) // _GRAIN) * _GRAIN, is_text=is_text)
        for side, is_text in ((images, False), (texts, True))
    )
    for start in range(0, len(texts) if of_texts else len(images), _GRAIN):
        if of_texts:
            some = slice(start, min(start + _GRAIN, len(texts)))
            scores = (rows @ columns[start : start + _GRAIN].T)[: len(images), : some.stop - start].T
        else:
            some = slice(start, min(start + _GRAIN, len(images)))
            scores = (rows[start : start + _GRAIN] @ columns.T)[: some.stop - start, : len(texts)]
        yield some, scores.numpy()


def _in_given_order(side: Side, gallery_size: int) -> PositiveRanks:
    row = np.repeat(side.order, side.positives.numpy())
    ranks = side.ranks.numpy()[np.lexsort((side.ranks.numpy(), row))]
    positives = np.bincount(row, minlength=len(side))
    queries = np.flatnonzero(positives)
    offsets = np.zeros(len(queries) + 1, dtype=np.int64)
    np.cumsum(positives[queries], out=offsets[1:])
    # Where minus infinity is a score, it is reached by what tiles are padded with, and by the whole gallery.
    ranks = np.minimum(ranks, gallery_size)
    optimistic = np.empty(len(side), dtype=np.int64)
    optimistic[side.order] = side.above.numpy() + 1
    return PositiveRanks(ranks, offsets, gallery_size, queries, optimistic[queries])


def _check_device(device: str) -> None:
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise EvaluationInputError(f"device is {device!r}; expected 'cpu' or 'cuda'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise EvaluationInputError("device is 'cuda', but torch sees no GPU here; take 'cpu'")
