"""What embeddings and similarities have in common: the labels, names and ids of n images and m texts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crosspair.evaluation.inputs import EvaluationInputError, check_labels

Given = Tensor | NDArray[Any]


class Labelled:
    """n images and m texts with a label each; equal means match.

    text_images [m]: row of the image that each text was written for, or None where nobody knows.
    image_ids [n], caption_ids [m]: COCO's own, which lists of relevant items go by; None where nobody knows.
    given_image_names, given_text_names: for exported rankings; without them rows are names.
    """

    image_labels: NDArray[np.int64]
    text_labels: NDArray[np.int64]
    text_images: NDArray[np.int64] | None
    given_image_names: tuple[str, ...]
    given_text_names: tuple[str, ...]
    image_ids: NDArray[np.int64] | None
    caption_ids: NDArray[np.int64] | None

    @property
    def image_names(self) -> tuple[str, ...]:
        return self.given_image_names or tuple(f"image-{row}" for row in range(len(self.image_labels)))

    @property
    def text_names(self) -> tuple[str, ...]:
        return self.given_text_names or tuple(f"text-{row}" for row in range(len(self.text_labels)))

    def labels_of_part(self, images: NDArray[Any], texts: NDArray[Any]) -> dict[str, Any]:
        """The fields above for some rows; which image a text was written for is no longer known."""
        image_names, text_names = self.image_names, self.text_names
        return {
            "image_labels": self.image_labels[images],
            "text_labels": self.text_labels[texts],
            "given_image_names": tuple(image_names[row] for row in images),
            "given_text_names": tuple(text_names[row] for row in texts),
            "image_ids": None if self.image_ids is None else self.image_ids[images],
            "caption_ids": None if self.caption_ids is None else self.caption_ids[texts],
        }


def checked_labels(
    shape: tuple[int, int],
    image_labels: Given,
    text_labels: Given,
    text_images: Given | None,
    image_ids: Given | None,
    caption_ids: Given | None,
    units: tuple[str, str] = ("embeddings", "embeddings"),
) -> dict[str, Any]:
    """The fields of `Labelled` but for names, for shape images and texts.

    units: what has a label each, for errors. Raises EvaluationInputError for other types, lengths and labels that don't
    fit each other.
    """
    images, texts = shape
    numbers = check_labels(image_labels, images, "image_labels", units[0])
    text_numbers = check_labels(text_labels, texts, "text_labels", units[1])
    return {
        "image_labels": numbers,
        "text_labels": text_numbers,
        "text_images": None if text_images is None else _check_text_images(text_images, numbers, text_numbers),
        "image_ids": None if image_ids is None else check_labels(image_ids, images, "image_ids"),
        "caption_ids": None if caption_ids is None else check_labels(caption_ids, texts, "caption_ids"),
    }


def _check_text_images(
    text_images: Tensor | NDArray[Any], image_labels: NDArray[np.int64], text_labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The row of the image of each text [texts]. Raises EvaluationInputError for rows that don't fit the labels."""
    rows = check_labels(text_images, len(text_labels), "text_images")
    outside = np.flatnonzero((rows < 0) | (rows >= len(image_labels)))
    if len(outside):
        raise EvaluationInputError(
            f"text_images hold {rows[outside[0]]} for text {outside[0]}; "
            f"expected the row of a picture, 0 to {len(image_labels) - 1}"
        )
    other = np.flatnonzero(image_labels[rows] != text_labels)
    if len(other):
        raise EvaluationInputError(
            f"text {other[0]} has label {text_labels[other[0]]}, its picture in text_images "
            f"{image_labels[rows[other[0]]]}; expected equal labels, one of the arrays is in another order"
        )
    return rows
