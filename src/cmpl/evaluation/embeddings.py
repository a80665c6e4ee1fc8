"""Pictures and texts to be ranked: their embeddings and labels, from a model of ours or from anyone's .npz file."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cmpl.errors import UserError
from cmpl.evaluation.inputs import EvaluationInputError, check_embeddings, check_labels

REQUIRED = ("image_embeddings", "text_embeddings", "image_labels", "text_labels")
_ADVICE = f"expected an .npz file with {', '.join(REQUIRED)}, as numpy.savez writes it (docs/evaluation.md)"


@dataclass(frozen=True)
class Embeddings:
    """n pictures and m texts, checked: finite numbers, one integer label each, equal means match.

    images [n, d], texts [m, d]: float32 or float64, need not be of unit length.
    text_pictures [m]: row of the picture that each text was written for, or None where nobody knows.
    image_names, text_names: for exported rankings; rows where none are given.
    """

    images: NDArray[Any]
    texts: NDArray[Any]
    image_labels: NDArray[np.int64]
    text_labels: NDArray[np.int64]
    text_pictures: NDArray[np.int64] | None = None
    image_names: tuple[str, ...] = ()
    text_names: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls,
        image_embeddings: Tensor | NDArray[Any],
        text_embeddings: Tensor | NDArray[Any],
        image_labels: Tensor | NDArray[Any],
        text_labels: Tensor | NDArray[Any],
        text_pictures: Tensor | NDArray[Any] | None = None,
        image_names: tuple[str, ...] = (),
        text_names: tuple[str, ...] = (),
    ) -> "Embeddings":
        """Raises EvaluationInputError, naming array and row, for what can't be evaluated."""
        images = check_embeddings(image_embeddings, "image_embeddings")
        texts = check_embeddings(text_embeddings, "text_embeddings")
        image_ids = check_labels(image_labels, len(images), "image_labels")
        text_ids = check_labels(text_labels, len(texts), "text_labels")
        rows = None if text_pictures is None else _check_pictures(text_pictures, image_ids, text_ids)
        return cls(
            images,
            texts,
            image_ids,
            text_ids,
            rows,
            image_names or tuple(f"image-{row}" for row in range(len(images))),
            text_names or tuple(f"text-{row}" for row in range(len(texts))),
        )

    def part(self, images: NDArray[Any], texts: NDArray[Any]) -> "Embeddings":
        """The pictures and texts of these rows; which picture a text was written for is no longer known."""
        return Embeddings(
            self.images[images],
            self.texts[texts],
            self.image_labels[images],
            self.text_labels[texts],
            image_names=tuple(self.image_names[row] for row in images),
            text_names=tuple(self.text_names[row] for row in texts),
        )

    def averaged_texts(self) -> "Embeddings":
        """One text for each label: the mean of its texts' embeddings as they are, by ascending label."""
        order = np.argsort(self.text_labels, kind="stable")
        labels, starts, counts = np.unique(self.text_labels[order], return_index=True, return_counts=True)
        sums = np.add.reduceat(self.texts[order], starts, axis=0, dtype=np.float64)
        return Embeddings(
            self.images,
            (sums / counts[:, None]).astype(self.texts.dtype),
            self.image_labels,
            labels,
            image_names=self.image_names,
            text_names=tuple(f"class-{label}" for label in labels),
        )


def read_embeddings(path: Path) -> Embeddings:
    """The embeddings and labels of an .npz file; `text_pictures` may be with them. Nothing is ever unpickled.

    Raises UserError for a file that is none, and naming file, array and row for what can't be evaluated.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds a single array; {_ADVICE}")
        with file:
            for name in REQUIRED:
                if name not in file:
                    raise UserError(f"{path} has no {name}, it has {', '.join(file.files) or 'nothing'}; {_ADVICE}")
            images, texts, image_labels, text_labels = (file[name] for name in REQUIRED)
            pictures = file.get("text_pictures")
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        reason = "holds Python objects" if "Object arrays" in str(error) else "can't be read"
        raise UserError(f"{path} {reason}; {_ADVICE}") from error
    try:
        return Embeddings.checked(images, texts, image_labels, text_labels, pictures)
    except EvaluationInputError as error:
        raise EvaluationInputError(f"{path}: {error}") from error


def _check_pictures(
    text_pictures: Tensor | NDArray[Any], image_labels: NDArray[np.int64], text_labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    rows = check_labels(text_pictures, len(text_labels), "text_pictures")
    outside = np.flatnonzero((rows < 0) | (rows >= len(image_labels)))
    if len(outside):
        raise EvaluationInputError(
            f"text_pictures hold {rows[outside[0]]} for text {outside[0]}; "
            f"expected the row of a picture, 0 to {len(image_labels) - 1}"
        )
    other = np.flatnonzero(image_labels[rows] != text_labels)
    if len(other):
        raise EvaluationInputError(
            f"text {other[0]} has label {text_labels[other[0]]}, its picture in text_pictures "
            f"{image_labels[rows[other[0]]]}; expected equal labels, one of the arrays is in another order"
        )
    return rows
