"""Scores of embeddings: products of their vectors, which are built block by block.

The embeddings may lie in a mapped file; memory holds two blocks of vectors.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosspair.evaluation.counting import DIRECTIONS, Counting, Direction, Metric, Pair, Side, in_threads
from crosspair.evaluation.inputs import EvaluationInputError

_CHUNK = 1024


class ProductCounting(Counting):
    """Ranks by cosine or distance. embeddings: the images and the texts, [n, d] and [m, d]."""

    given = "embeddings"

    def __init__(
        self,
        images: NDArray[Any],
        texts: NDArray[Any],
        image_labels: NDArray[np.int64],
        text_labels: NDArray[np.int64],
        metric: Metric,
        *,
        device: str = "cpu",
        tile: tuple[int, int] | None = None,
        directions: Sequence[Direction] = DIRECTIONS,
    ) -> None:
        """Embeddings [n, d] and [m, d] and labels that were checked."""
        dtype = score_type(images, texts)
        super().__init__(image_labels, text_labels, dtype, device=device, tile=tile, directions=directions)
        self.embeddings, self.metric = (images, texts), metric
        self._held: dict[bool, tuple[slice, Tensor]] = {}

    def build(self, pair: Pair) -> None:
        for side, block in zip((self.images, self.texts), pair, strict=True):
            self.vectors(side, block)

    def write_scores(self, pair: Pair, images: slice, texts: slice, out: Tensor) -> None:
        (_, rows), (_, columns) = self._held[False], self._held[True]
        height, width = out.shape
        rows = rows[images.start - pair[0].start :][:height]
        torch.mm(rows, columns[texts.start - pair[1].start :][:width].T, out=out)

    def vectors(self, side: Side, block: slice) -> Tensor:
        """Vectors of a block on the device, padded to the grain of its tiles; the last ones of each side are kept."""
        held = self._held.get(side.is_text)
        if held is None or held[0] != block:
            self._held.pop(side.is_text, None)
            rows = side.order[block]
            last = self.tiles(side, block)[-1]
            padded = last.start - block.start + self.padded(side, last)
            vectors = vectors_of(
                self.embeddings[side.is_text], rows, self.metric, self.dtype, padded, is_text=side.is_text
            )
            if self.device.type != "cpu":
                vectors = vectors.pin_memory().to(self.device, non_blocking=True)
            held = self._held[side.is_text] = (block, vectors)
        return held[1]

    def forget(self) -> None:
        """Free the vectors that are kept."""
        self._held.clear()

    def block_items(self, side: Side) -> int:
        """The largest number of items of a block: whole tiles."""
        bytes_each = (self.embeddings[side.is_text].shape[1] + 2) * self.dtype.itemsize
        tile = self.layout.tile[side.is_text]
        return max(tile, int(self.layout.block[side.is_text] // bytes_each // tile) * tile)

    @property
    def block_bytes(self) -> int:
        rows = sum(min(self.block_items(side), len(side)) for side in (self.images, self.texts))
        return int(rows * (self.embeddings[0].shape[1] + 2) * self.dtype.itemsize)

    @property
    def description(self) -> str:
        return f"of {self.embeddings[0].shape[1]:,} dimensions"


def score_type(images: NDArray[Any], texts: NDArray[Any]) -> torch.dtype:
    """The type that scores are computed in: the wider of both, float32 at least."""
    wide = any(rows.dtype.kind == "f" and rows.dtype.itemsize == 8 for rows in (images, texts))
    return torch.float64 if wide else torch.float32


def vectors_of(
    embeddings: NDArray[Any], order: NDArray[np.int64], metric: Metric, dtype: torch.dtype, rows: int, *, is_text: bool
) -> Tensor:
    """Rows in the given order whose dot products with those of the other side are the scores, zero rows at the end.

    Cosine: rows of unit length. Euclidean: x.z - |x|^2/2 - |z|^2/2, minus half the squared distance, as one product of
    rows longer by two: (x, -|x|^2/2, 1) and (z, 1, -|z|^2/2).
    """
    dimension = embeddings.shape[1]
    smallest = torch.finfo(dtype).tiny
    numpy_type = np.float64 if dtype == torch.float64 else np.float32
    vectors = torch.zeros(rows, dimension + 2 * (metric == "euclidean"), dtype=dtype)

    def fill(start: int) -> None:
        some = np.asarray(embeddings[order[start : start + _CHUNK]])
        rows = torch.from_numpy(some.astype(numpy_type, copy=False))  # torch lacks other byte orders, and uint16
        out = vectors[start : start + len(rows)]
        if metric == "cosine":
            # The square of a large or small float32 leaves its range; that of a number relative to the largest doesn't.
            largest = rows.abs().amax(1, keepdim=True)
            if (largest < smallest).any():  # of subnormal numbers not even the reciprocal is in range
                raised = torch.ones_like(largest)
                raised[largest < smallest] = 1 / smallest
                rows, largest = rows * raised, largest * raised
            rows = rows / largest.clamp(min=smallest)
            torch.div(rows, torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=0.5), out=out)
        else:
            out[:, :dimension] = rows
            out[:, dimension + is_text] = rows.square().sum(1) / -2
            out[:, dimension + (not is_text)] = 1
            if not out.isfinite().all():
                raise EvaluationInputError(
                    f"embeddings up to {rows.abs().max():.3g} have distances beyond {dtype}; "
                    "expected smaller numbers, scale them or give float64"
                )

    in_threads(fill, [(start,) for start in range(0, len(order), _CHUNK)])
    return vectors
