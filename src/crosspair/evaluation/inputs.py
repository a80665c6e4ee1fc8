"""Validation of embeddings and labels, with a sentence for what can't be evaluated."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosspair.errors import UserError

_CHUNK = 4096


class EvaluationInputError(UserError, ValueError):
    """Embeddings or labels that can't be evaluated: a ValueError to Python, one sentence to the command line."""


def check_embeddings(embeddings: Tensor | NDArray[Any], name: str) -> NDArray[Any]:
    """Embeddings as a numpy matrix [n, d] of float16, float32 or float64, without a copy where that is possible.

    A mapped file stays one. Raises EvaluationInputError for other types and shapes and for NaN or infinity.
    """
    if isinstance(embeddings, Tensor):
        tensor = embeddings.detach().cpu()
        matrix = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    else:
        matrix = np.asarray(embeddings)
    if matrix.dtype not in (np.float16, np.float32, np.float64):
        raise EvaluationInputError(f"{name} are {matrix.dtype}; expected floating point numbers, convert them first")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise EvaluationInputError(
            f"{name} have shape {matrix.shape}; expected [rows, dimension] with at least one of each"
        )
    for start in range(0, len(matrix), _CHUNK):
        finite = np.isfinite(matrix[start : start + _CHUNK]).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise EvaluationInputError(
                f"row {row} of {name} holds NaN or infinity; expected finite numbers, look at the model or the file"
            )
    return matrix


def check_labels(labels: Tensor | NDArray[Any], rows: int, name: str) -> NDArray[np.int64]:
    """Labels as int64 [rows]. Raises EvaluationInputError for other types, lengths, and values int64 can't hold."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise EvaluationInputError(f"{name} are {array.dtype}; expected integers, as only these compare exactly")
    if array.shape != (rows,):
        raise EvaluationInputError(
            f"{name} have shape {array.shape}; expected one label for each of the {rows} embeddings"
        )
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise EvaluationInputError(f"{name} go up to {array.max()}; expected at most 2**63 - 1, number them anew")
    return array.astype(np.int64)


def count_distractors(image_labels: NDArray[np.int64], text_labels: NDArray[np.int64]) -> tuple[int, int]:
    """How many images match no text, and how many texts match no image."""
    images, texts = ~np.isin(image_labels, text_labels), ~np.isin(text_labels, image_labels)
    return int(images.sum()), int(texts.sum())


def check_matches(
    query_labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
    queries: str,
    gallery: str,
    *,
    distractors: bool = False,
) -> None:
    """Raise EvaluationInputError unless every query has a positive: its recall and precision would mean nothing.

    distractors: whether one query with a positive is enough.
    """
    alone = np.flatnonzero(~np.isin(query_labels, gallery_labels))
    if len(alone) == len(query_labels) and distractors:
        raise EvaluationInputError(
            f"no row of {queries} matches a row of {gallery}; expected equal labels in both, look at the labels"
        )
    if len(alone) and not distractors:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise EvaluationInputError(
            f"row {alone[0]} of {queries} with label {query_labels[alone[0]]}{more} matches no row of {gallery}; "
            "expected at least one of equal label, leave such rows out, or keep them in the gallery with "
            "distractors=True (--distractors)"
        )
