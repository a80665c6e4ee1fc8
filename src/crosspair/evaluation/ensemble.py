"""Several models as one: the mean of their similarities, without a matrix of them.

The mean of cosines is the cosine of the models' unit vectors set side by side, so an ensemble is ranked as embeddings
are. Likewise the mean of squared distances is the squared distance of the vectors side by side, each over the square
root of the number of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.errors import UserError
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.ranking import Metric

_CHUNK = 65_536


@dataclass(frozen=True)
class Ensemble(Embeddings):
    """Embeddings of the same images and texts by several models, side by side.

    images [n, d], texts [m, d]: d is the sum of the models' dimensions, and 2 more for "cosine" if one of them gives a
    row of zeros. members: each model's own. metric: the one that they are joined for.
    """

    members: tuple[Embeddings, ...] = ()
    metric: Metric = "cosine"

    def part(self, images: NDArray[Any], texts: NDArray[Any]) -> "Ensemble":
        joined = _joined([member.part(images, texts) for member in self.members], self.metric)
        return replace(joined, image_labels=self.image_labels[images], text_labels=self.text_labels[texts])

    def averaged_texts(self) -> "Ensemble":
        """Each model's own means, which are then joined."""
        return _joined([member.averaged_texts() for member in self.members], self.metric)


def join_ensemble(members: Sequence[Embeddings], names: Sequence[str], metric: Metric = "cosine") -> Ensemble:
    """The embeddings of several models as those of one, whose similarity is the mean of theirs.

    names: of the models, for errors. Raises UserError unless all are of the same images and texts, in one order.
    """
    check_same_rows(members, names)
    return _joined(members, metric)


def check_same_rows(members: Sequence[Any], names: Sequence[str]) -> None:
    """Raise UserError unless all have the same labels, row by row."""
    first = members[0]
    for member, name in zip(members[1:], names[1:], strict=True):
        for what in ("image_labels", "text_labels"):
            ours, theirs = getattr(first, what), getattr(member, what)
            if len(ours) != len(theirs):
                raise UserError(
                    f"{name} has {len(theirs):,} {what} and {names[0]} {len(ours):,}; expected the same images and "
                    "texts in one order"
                )
            if (ours != theirs).any():
                row = int((ours != theirs).argmax())
                raise UserError(
                    f"{what} of {name} and {names[0]} differ, first in row {row}: {theirs[row]} and {ours[row]}; "
                    "expected the same images and texts in one order"
                )


def _joined(members: Sequence[Embeddings], metric: Metric) -> Ensemble:
    first = members[0]
    known = next((member.text_images for member in members if member.text_images is not None), None)
    images = _side_by_side([each.images for each in members], metric)
    texts = _side_by_side([each.texts for each in members], metric)
    if metric == "cosine":
        images, texts = _of_equal_length(images, texts, len(members))
    return Ensemble(
        images,
        texts,
        first.image_labels,
        first.text_labels,
        known,
        first.given_image_names,
        first.given_text_names,
        first.image_ids,
        first.caption_ids,
        members=tuple(members),
        metric=metric,
    )


def _side_by_side(sides: Sequence[NDArray[Any]], metric: Metric) -> NDArray[Any]:
    """Rows of all models [n, sum of d]: of unit length each for "cosine", zero rows as they are."""
    dtype = np.result_type(np.float32, *(side.dtype for side in sides))
    joined = np.empty((len(sides[0]), sum(side.shape[1] for side in sides)), dtype=dtype)
    column = 0
    for side in sides:
        columns = slice(column, column := column + side.shape[1])
        for start in range(0, len(side), _CHUNK):
            rows = np.asarray(side[start : start + _CHUNK], dtype=np.float64)
            scale = _lengths(rows) if metric == "cosine" else np.float64(len(sides) ** 0.5)
            joined[start : start + _CHUNK, columns] = rows / scale
    return joined


def _lengths(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lengths of rows [n, 1], 1 for those of zeros; neither the tiny nor the huge lose theirs."""
    largest = np.abs(rows).max(1, keepdims=True, initial=0.0)
    largest[largest == 0] = 1.0
    lengths: NDArray[np.float64] = largest * np.linalg.norm(rows / largest, axis=1, keepdims=True)
    return np.where(lengths == 0, 1.0, lengths)


def _of_equal_length(images: NDArray[Any], texts: NDArray[Any], models: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of zeros of one model made up for in a column of their side's own, where the other side has zeros.

    So all rows have the same length, and the cosine stays the mean over all models: a row of zeros has cosine 0.
    """
    missing = [np.rint(models - np.square(side, dtype=np.float64).sum(1)) for side in (images, texts)]
    if not any(each.any() for each in missing):
        return images, texts
    joined = []
    for number, (side, each) in enumerate(zip((images, texts), missing, strict=True)):
        more = np.zeros((len(side), 2), dtype=side.dtype)
        more[:, number] = np.sqrt(np.where(each < models, each, 0.0))  # rows of zeros alone stay so
        joined.append(np.concatenate([side, more], axis=1))
    return joined[0], joined[1]
