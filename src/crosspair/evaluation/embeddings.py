"""Images and texts to be ranked: their embeddings and labels, from a model of ours or from anyone's files.

An .npz file is read into memory. A directory of .npy files of the same names is mapped, and may be larger.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crosspair.errors import UserError
from crosspair.evaluation.counting import DIRECTIONS, Direction, Metric
from crosspair.evaluation.inputs import EvaluationInputError, check_embeddings
from crosspair.evaluation.labelled import Labelled, checked_labels
from crosspair.evaluation.products import ProductCounting
from crosspair.evaluation.ranking import prepare_counting, score_blocks

REQUIRED = ("image_embeddings", "text_embeddings", "image_labels", "text_labels")
OPTIONAL = ("text_images", "image_ids", "caption_ids")
_DAMAGED = (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
_CHUNK = 65_536


@dataclass(frozen=True)
class Embeddings(Labelled):
    """n images and m texts, checked: finite numbers, one integer label each, equal means match.

    images [n, d], texts [m, d]: float16, float32 or float64, need not be of unit length; may be mapped files.
    """

    images: NDArray[Any]
    texts: NDArray[Any]
    image_labels: NDArray[np.int64]
    text_labels: NDArray[np.int64]
    text_images: NDArray[np.int64] | None = None
    given_image_names: tuple[str, ...] = ()
    given_text_names: tuple[str, ...] = ()
    image_ids: NDArray[np.int64] | None = None
    caption_ids: NDArray[np.int64] | None = None

    @classmethod
    def checked(
        cls,
        image_embeddings: Tensor | NDArray[Any],
        text_embeddings: Tensor | NDArray[Any],
        image_labels: Tensor | NDArray[Any],
        text_labels: Tensor | NDArray[Any],
        text_images: Tensor | NDArray[Any] | None = None,
        image_names: tuple[str, ...] = (),
        text_names: tuple[str, ...] = (),
        image_ids: Tensor | NDArray[Any] | None = None,
        caption_ids: Tensor | NDArray[Any] | None = None,
    ) -> "Embeddings":
        """Raises EvaluationInputError, naming array and row, for what can't be evaluated."""
        images = check_embeddings(image_embeddings, "image_embeddings")
        texts = check_embeddings(text_embeddings, "text_embeddings")
        sizes = len(images), len(texts)
        labels = checked_labels(sizes, image_labels, text_labels, text_images, image_ids, caption_ids)
        return cls(images, texts, **labels, given_image_names=image_names, given_text_names=text_names)

    def ranked_by(self, metric: Metric) -> Metric:
        """The name of what ranks."""
        return metric

    def counting(
        self,
        metric: Metric = "cosine",
        *,
        device: str = "cpu",
        directions: Sequence[Direction] = DIRECTIONS,
        distractors: bool = False,
    ) -> ProductCounting:
        """What ranks them. Raises EvaluationInputError for what can't be ranked."""
        return prepare_counting(
            self.images,
            self.texts,
            self.image_labels,
            self.text_labels,
            metric,
            device=device,
            directions=directions,
            distractors=distractors,
        )

    def score_blocks(self, metric: Metric, *, of_texts: bool) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Scores of some images with all texts [images, m], or of_texts of some texts with all images [texts, n]."""
        return score_blocks(self.images, self.texts, metric, of_texts=of_texts)

    def part(self, images: NDArray[Any], texts: NDArray[Any]) -> "Embeddings":
        """The images and texts of these rows; which image a text was written for is no longer known."""
        return Embeddings(self.images[images], self.texts[texts], **self.labels_of_part(images, texts))

    def averaged_texts(self) -> "Embeddings":
        """One text for each label: the mean of its texts' embeddings as they are, in the order of their first ones."""
        labels, first, number = np.unique(self.text_labels, return_index=True, return_inverse=True)
        place = np.argsort(np.argsort(first))  # of each label, which no numbering changes
        number, labels = place[number], labels[np.argsort(first)]
        order, counts = np.argsort(number, kind="stable"), np.bincount(number)
        means = np.zeros((len(labels), self.texts.shape[1]))
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            some, starts = np.unique(number[rows], return_index=True)
            means[some] += np.add.reduceat(self.texts[rows], starts, axis=0, dtype=np.float64)
        means /= counts[:, None]
        return Embeddings(
            self.images,
            means.astype(np.float64 if self.texts.dtype == np.float64 else np.float32),
            self.image_labels,
            labels,
            given_image_names=self.given_image_names,
            given_text_names=tuple(f"label-{label}" for label in labels),
        )


def read_embeddings(path: Path) -> Embeddings:
    """The arrays REQUIRED and OPTIONAL of an .npz file or of a directory of .npy files. Nothing is ever unpickled.

    Raises UserError for a file that is none, and naming file, array and row for what can't be evaluated.
    """
    arrays = read_arrays(path, REQUIRED, OPTIONAL)
    try:
        return Embeddings.checked(
            arrays["image_embeddings"],
            arrays["text_embeddings"],
            arrays["image_labels"],
            arrays["text_labels"],
            text_images=arrays.get("text_images"),
            image_ids=arrays.get("image_ids"),
            caption_ids=arrays.get("caption_ids"),
        )
    except EvaluationInputError as error:
        raise EvaluationInputError(f"{path}: {error}") from error


def read_arrays(path: Path, required: Sequence[str], optional: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names in an .npz file, or mapped from a directory of .npy files.

    Raises UserError, naming the file, for one that can't be read or lacks a required array.
    """
    advice = (
        f"expected an .npz file with {', '.join(required)}, as numpy.savez writes it, or a directory of .npy files "
        "of these names (docs/evaluation.md)"
    )
    names = (*required, *optional)
    arrays = _map_directory(path, names) if path.is_dir() else _read_npz(path, names, advice)
    missing = [name for name in required if name not in arrays]
    if missing:
        raise UserError(f"{path} has no {missing[0]}, it has {', '.join(arrays) or 'nothing'}; {advice}")
    return arrays


def _read_npz(path: Path, names: Sequence[str], advice: str) -> dict[str, NDArray[Any]]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds a single array; {advice}")
        with file:
            return {name: file[name] for name in file.files if name in names}
    except _DAMAGED as error:
        raise UserError(f"{path} {_reason(error)}; {advice}") from error


def _map_directory(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name in names:
        file = path / f"{name}.npy"
        if not file.is_file():
            continue
        try:
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(arrays[name], np.ndarray):
                raise ValueError("it is an archive")
        except _DAMAGED as error:
            raise UserError(f"{file} {_reason(error)}; expected one array, as numpy.save writes it") from error
    return arrays


def _reason(error: Exception) -> str:
    objects = any(words in str(error) for words in ("Object arrays", "Python objects"))
    return "holds Python objects" if objects else "can't be read"
