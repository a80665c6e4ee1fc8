"""Images and texts to be ranked by a matrix of similarities: of a cross encoder, a re-ranker, or an ensemble.

An .npz file is read into memory. A directory of .npy files of the same names is mapped, and may be larger.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosspair.evaluation.counting import (
    DIRECTIONS,
    Counting,
    Direction,
    Metric,
    Pair,
    Side,
    check_directions,
    in_threads,
)
from crosspair.evaluation.embeddings import read_arrays
from crosspair.evaluation.inputs import (
    EvaluationInputError,
    as_array,
    check_matches,
    count_distractors,
)
from crosspair.evaluation.labelled import Labelled, checked_labels
from crosspair.evaluation.metrics import MetricDefinition, RetrievalResult, check_options, result_of_ranks
from crosspair.evaluation.ranking import count_ranks

REQUIRED = ("similarities", "image_labels", "text_labels")
OPTIONAL = ("text_images", "image_ids", "caption_ids")
_MOST_COLUMNS = 1 << 20  # of a block; a row of more is read in parts
_ROWS = 24
_PAIRS = 1 << 20


@dataclass(frozen=True)
class Similarities(Labelled):
    """n images and m texts, checked, and the similarity of each image with each text: the higher, the better.

    matrices: one or several [n, m] of float16, float32 or float64, which are averaged; may be mapped files. They hold
    no NaN (which is only seen when they are read) and no infinity, but may hold minus infinity: the worst, where a
    re-ranker didn't score. sources: a name of each, for errors.
    image_rows [n], text_columns [m]: the rows and columns that are meant, None for all.
    The other fields are those of `Labelled`.
    """

    matrices: tuple[NDArray[Any], ...]
    image_labels: NDArray[np.int64]
    text_labels: NDArray[np.int64]
    text_images: NDArray[np.int64] | None = None
    given_image_names: tuple[str, ...] = ()
    given_text_names: tuple[str, ...] = ()
    image_ids: NDArray[np.int64] | None = None
    caption_ids: NDArray[np.int64] | None = None
    image_rows: NDArray[np.int64] | None = None
    text_columns: NDArray[np.int64] | None = None
    sources: tuple[str, ...] = ("similarities",)

    @classmethod
    def checked(
        cls,
        similarities: Tensor | NDArray[Any],
        image_labels: Tensor | NDArray[Any],
        text_labels: Tensor | NDArray[Any],
        text_images: Tensor | NDArray[Any] | None = None,
        image_names: tuple[str, ...] = (),
        text_names: tuple[str, ...] = (),
        image_ids: Tensor | NDArray[Any] | None = None,
        caption_ids: Tensor | NDArray[Any] | None = None,
        *,
        source: str = "similarities",
    ) -> "Similarities":
        """Raises EvaluationInputError, naming the array, for what can't be evaluated."""
        matrix = as_array(similarities, "similarities")
        if matrix.dtype.kind != "f" or matrix.dtype.itemsize > 8:
            raise EvaluationInputError(
                f"similarities are {matrix.dtype}; expected floating point numbers, convert them first"
            )
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise EvaluationInputError(
                f"similarities have shape {matrix.shape}; expected [images, texts] with at least one of each"
            )
        images, texts = matrix.shape
        given = as_array(image_labels, "image_labels").shape, as_array(text_labels, "text_labels").shape
        if images != texts and given == ((texts,), (images,)):
            raise EvaluationInputError(
                f"similarities have shape {matrix.shape}, for {texts:,} images and {images:,} texts; expected "
                "[images, texts], give the transposed matrix"
            )
        labels = checked_labels(
            (images, texts), image_labels, text_labels, text_images, image_ids, caption_ids, ("rows", "columns")
        )
        return cls((matrix,), **labels, given_image_names=image_names, given_text_names=text_names, sources=(source,))

    @property
    def dtype(self) -> torch.dtype:
        """The type that similarities are compared in: the widest of the matrices, float32 at least."""
        wide = any(matrix.dtype.itemsize == 8 for matrix in self.matrices)
        return torch.float64 if wide else torch.float32

    def part(self, images: NDArray[Any], texts: NDArray[Any]) -> "Similarities":
        """The images and texts of these rows and columns; which image a text was written for is no longer known."""
        return Similarities(
            self.matrices,
            **self.labels_of_part(images, texts),
            image_rows=self._rows[images],
            text_columns=self._columns[texts],
            sources=self.sources,
        )

    def averaged_texts(self) -> "Similarities":
        """Itself, if each label has one text: similarities of texts can't be made into those of their mean."""
        labels, counts = np.unique(self.text_labels, return_counts=True)
        if counts.max() > 1:
            raise EvaluationInputError(
                f"label {labels[counts.argmax()]} has {counts.max():,} texts, and their mean can't be found from "
                "similarities; expected one column for each label, or take another --protocol"
            )
        return self

    def ranked_by(self, metric: Metric) -> Metric:
        """The name of what ranks. Raises EvaluationInputError for a distance, as there are no vectors."""
        if metric == "euclidean":
            raise EvaluationInputError("similarities rank by themselves; leave metric 'euclidean' out")
        return "similarity"

    def counting(
        self,
        metric: Metric = "cosine",
        *,
        device: str = "cpu",
        directions: Sequence[Direction] = DIRECTIONS,
        distractors: bool = False,
    ) -> "MatrixCounting":
        """What ranks them; nothing is read yet. The CPU counts, whatever the device."""
        self.ranked_by(metric)
        check_directions(directions)
        sides = ((self.image_labels, "rows"), (self.text_labels, "columns"))
        for (queries, what), (gallery, others) in (sides, sides[::-1]):
            check_matches(queries, gallery, f"the {what}", f"the {others}", distractors=distractors)
        return MatrixCounting(self, directions=directions)

    def block(self, images: NDArray[np.int64], texts: NDArray[np.int64]) -> NDArray[Any]:
        """The similarities of some images with some texts [images, texts], checked.

        Raises EvaluationInputError for NaN and infinity, naming row and column.
        """
        rows, columns = self._rows[images], self._columns[texts]
        found = np.empty((len(rows), len(columns)), dtype=self._numpy_type)
        in_threads(
            lambda start: self._fill(found[start : start + _ROWS], rows[start : start + _ROWS], columns),
            [(start,) for start in range(0, len(rows), _ROWS)],
        )
        return found

    def of_pairs(self, images: NDArray[np.int64], texts: NDArray[np.int64]) -> NDArray[Any]:
        """The similarities of pairs [pairs], those of `block`."""
        rows, columns = self._rows[images], self._columns[texts]
        return self._mean([matrix[rows, columns] for matrix in self.matrices], rows, columns).astype(self._numpy_type)

    def score_blocks(self, metric: Metric, *, of_texts: bool) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Scores of some images with all texts [images, m], or of_texts of some texts with all images [texts, n]."""
        self.ranked_by(metric)
        images, texts = np.arange(len(self.image_labels)), np.arange(len(self.text_labels))
        for start in range(0, len(texts) if of_texts else len(images), _ROWS):
            some = slice(start, min(start + _ROWS, len(texts) if of_texts else len(images)))
            yield some, self.block(images, texts[some]).T if of_texts else self.block(images[some], texts)

    @property
    def _numpy_type(self) -> type[np.floating[Any]]:
        return np.float64 if self.dtype == torch.float64 else np.float32

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        return np.arange(self.matrices[0].shape[0]) if self.image_rows is None else self.image_rows

    @cached_property
    def _columns(self) -> NDArray[np.int64]:
        return np.arange(self.matrices[0].shape[1]) if self.text_columns is None else self.text_columns

    def _fill(self, out: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        # A slice is read in one go, where a list of columns is looked up one by one.
        together = len(columns) == columns[-1] - columns[0] + 1 and bool((np.diff(columns) == 1).all())
        some: Any = slice(int(columns[0]), int(columns[-1]) + 1) if together else columns
        for number, row in enumerate(rows.tolist()):
            out[number] = self._mean([matrix[row][some] for matrix in self.matrices], np.array([row]), columns)

    def _mean(
        self, values: Sequence[NDArray[Any]], rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[Any]:
        """The mean of each matrix's values, once they are checked. rows, columns: theirs, as they broadcast to them."""
        for each, source in zip(values, self.sources, strict=True):
            _check(each, rows, columns, source)
        return values[0] if len(values) == 1 else np.asarray(np.stack(values).astype(np.float64).mean(0))


class MatrixCounting(Counting):
    """Ranks by similarities that were given, read block by block."""

    given = "matrix"

    def __init__(self, similarities: Similarities, *, directions: Sequence[Direction] = DIRECTIONS) -> None:
        labels = similarities.image_labels, similarities.text_labels
        super().__init__(*labels, similarities.dtype, directions=directions)
        self.similarities = similarities
        self._held: tuple[Pair, Tensor] | None = None

    def read_positives(self) -> None:
        """Fill in the scores of all positives, which are read alone."""
        images, texts = self.images, self.texts
        row = torch.repeat_interleave(images.positives)
        column = images.first[row] + torch.arange(len(row)) - images.offsets[row]
        for start in range(0, len(row), _PAIRS):
            some = slice(start, start + _PAIRS)
            pairs = images.order[row[some].numpy()], texts.order[column[some].numpy()]
            images.scores[some] = torch.from_numpy(self.similarities.of_pairs(*pairs))
        texts.scores[texts.offsets[column] + row - texts.first[column]] = images.scores
        for side in (images, texts):
            side.find_best()

    def build(self, pair: Pair) -> None:
        if self._held is None or self._held[0] != pair:
            self._held = None
            images, texts = self.images.order[pair[0]], self.texts.order[pair[1]]
            self._held = pair, torch.from_numpy(self.similarities.block(images, texts))

    def write_scores(self, pair: Pair, images: slice, texts: slice, out: Tensor) -> None:
        assert self._held is not None
        rows = slice(images.start - pair[0].start, images.stop - pair[0].start)
        columns = slice(texts.start - pair[1].start, texts.stop - pair[1].start)
        out[: images.stop - images.start, : texts.stop - texts.start] = self._held[1][rows, columns]

    def block_items(self, side: Side) -> int:
        tile = self.layout.tile[side.is_text]
        columns = max(self.layout.tile[1], min(_MOST_COLUMNS, len(self.texts)))
        if side.is_text:
            return math.ceil(columns / tile) * tile
        return max(tile, int(self.layout.block[0] // (columns * self.dtype.itemsize) // tile) * tile)

    def forget(self) -> None:
        self._held = None

    @property
    def block_bytes(self) -> int:
        images, texts = (min(self.block_items(side), len(side)) for side in (self.images, self.texts))
        return images * texts * self.dtype.itemsize

    @property
    def description(self) -> str:
        several = len(self.similarities.matrices)
        return "of a matrix" if several == 1 else f"of the mean of {several} matrices"


def mean_similarities(several: Sequence[Similarities]) -> Similarities:
    """The mean of several matrices over the same images and texts, as of an ensemble; it is taken when it is read.

    Raises EvaluationInputError unless all have the same shape and labels.
    """
    if not several:
        raise EvaluationInputError("found no similarities to take the mean of; expected one matrix or more")
    first = several[0]
    for number, each in enumerate(several[1:], 2):
        for what in ("image_labels", "text_labels", "image_rows", "text_columns"):
            one, other = getattr(first, what), getattr(each, what)
            if (one is None) != (other is None) or (one is not None and not np.array_equal(one, other)):
                raise EvaluationInputError(
                    f"matrix {number} has other {what} than the first; expected the same images and texts in one order"
                )
    return replace(
        first,
        matrices=tuple(matrix for each in several for matrix in each.matrices),
        sources=tuple(source for each in several for source in each.sources),
    )


def evaluate_similarities(
    similarities: Tensor | NDArray[Any],
    image_labels: Tensor | NDArray[Any],
    text_labels: Tensor | NDArray[Any],
    ks: tuple[int, ...] = (1, 5, 10),
    metric_definition: MetricDefinition = "exact",
    extra: tuple[str, ...] = (),
    *,
    progress: bool = False,
    directions: Sequence[Direction] = DIRECTIONS,
    distractors: bool = False,
) -> RetrievalResult:
    """Evaluate retrieval in both directions by a matrix of similarities, as of a cross encoder or a re-ranker.

    similarities [n, m]: of each image with each text, the higher, the better; float16, float32 or float64. A mapped
    file is read in blocks. -inf is the worst: what was not scored, which ties, and ties count against the model.
    image_labels [n], text_labels [m] and all other arguments: as `evaluate_retrieval` takes them.
    Raises EvaluationInputError (a UserError and a ValueError) for NaN, infinity, shapes that don't fit, labels that
    aren't integers, and a query without a positive, naming row and column.
    """
    ks = check_options(ks, metric_definition, extra)
    given = Similarities.checked(similarities, image_labels, text_labels)
    counting = given.counting(directions=directions, distractors=distractors)
    ranks, further = count_ranks(counting, progress=progress), dict.fromkeys(DIRECTIONS, extra)
    alone = count_distractors(given.image_labels, given.text_labels)
    return result_of_ranks(ranks, "similarity", ks, metric_definition, further, alone)


def read_similarities(path: Path | str) -> Similarities:
    """The arrays REQUIRED and OPTIONAL of an .npz file or of a directory of .npy files. Nothing is ever unpickled.

    Raises UserError for a file that is none, and naming file and array for what can't be evaluated.
    """
    arrays = read_arrays(Path(path), REQUIRED, OPTIONAL)
    try:
        return Similarities.checked(
            arrays["similarities"],
            arrays["image_labels"],
            arrays["text_labels"],
            text_images=arrays.get("text_images"),
            image_ids=arrays.get("image_ids"),
            caption_ids=arrays.get("caption_ids"),
            source=f"{path}: similarities",
        )
    except EvaluationInputError as error:
        raise EvaluationInputError(f"{path}: {error}") from error


def _check(found: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64], source: str) -> None:
    """Raise EvaluationInputError for NaN and infinity. rows, columns: of what was found, as they broadcast to it."""
    wrong = np.isnan(found) | (found == np.inf)
    if wrong.any():
        row, column = (np.broadcast_to(places, found.shape)[wrong][0] for places in (rows, columns))
        raise EvaluationInputError(
            f"{source} hold {'NaN' if np.isnan(found[wrong][0]) else 'infinity'} in row {row}, column {column}; "
            "expected numbers, with -inf where nothing was scored"
        )
