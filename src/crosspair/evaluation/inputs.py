"""Validation of embeddings and labels, with a sentence for what can't be evaluated."""

import logging
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosspair.errors import UserError

_CHUNK = 4096
_logger = logging.getLogger(__name__)


@cache
def warn_once(sentence: str) -> None:
    """Say a sentence on stderr, unless this process has said it before."""
    _logger.warning(sentence)


class EvaluationInputError(UserError, ValueError):
    """Embeddings or labels that can't be evaluated: a ValueError to Python, one sentence to the command line."""


def as_array(values: Any, name: str) -> NDArray[Any]:
    """An array or a tensor as numpy's, without a copy where that is possible; a mapped file stays one.

    bfloat16 becomes float32. Raises EvaluationInputError for what numpy can't hold as numbers.
    """
    if isinstance(values, Tensor):
        return _as_numpy(values, name)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EvaluationInputError(
            f"{name} can't be made into an array ({error!s:.80}); expected an array or a tensor, rows of one length"
        ) from error
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise EvaluationInputError(f"{name} are masked in places; expected numbers everywhere, leave such rows out")
    if array.dtype.kind in "OV":
        found = "raw bytes, as numpy stores bfloat16" if array.dtype.kind == "V" else "Python objects"
        raise EvaluationInputError(f"{name} hold {found}; expected numbers, convert them to float32 first")
    return array


def _as_numpy(tensor: Tensor, name: str) -> NDArray[Any]:
    advice = None
    if tensor.is_nested or tensor.layout != torch.strided:
        advice = "are a sparse or nested tensor; expected a dense one, as .to_dense() gives"
    elif tensor.device.type == "meta":
        advice = "are on the meta device, where tensors have no numbers; expected one with numbers"
    elif tensor.is_quantized:
        advice = "are quantised; expected plain numbers, as .dequantize() or .int_repr() gives"
    elif tensor.dtype.is_floating_point and tensor.dtype.itemsize < 2:
        advice = f"are {tensor.dtype}; expected float16 or wider, as .float() gives"
    if advice:
        raise EvaluationInputError(f"{name} {advice}")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    try:
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    except (TypeError, RuntimeError) as error:
        raise EvaluationInputError(f"{name} are {tensor.dtype}, which numpy lacks; convert them first") from error


def check_embeddings(embeddings: Tensor | NDArray[Any], name: str) -> NDArray[Any]:
    """Embeddings as a numpy matrix [n, d], without a copy where that is possible; a mapped file stays one.

    float16, float32 or float64, or codes of up to 16 bits (int8, uint8, int16, uint16), which float32 holds exactly; in
    any byte order. Raises EvaluationInputError for other types and shapes and for NaN or infinity.
    """
    matrix = as_array(embeddings, name)
    kind, size = matrix.dtype.kind, matrix.dtype.itemsize
    if not (kind == "f" and size <= 8) and not (kind in "iu" and size <= 2):
        raise EvaluationInputError(
            f"{name} are {matrix.dtype}; expected floating point numbers, or codes of 8 or 16 bits, convert them first"
        )
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise EvaluationInputError(
            f"{name} have shape {matrix.shape}; expected [rows, dimension] with at least one of each"
        )
    if kind == "u":
        warn_once(
            f"{name} are {matrix.dtype} codes, which rank as the numbers they are; take off their zero point if they "
            "have one, and unpack them if they are bits"
        )
    for start in range(0, len(matrix) if kind == "f" else 0, _CHUNK):
        finite = np.isfinite(matrix[start : start + _CHUNK]).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise EvaluationInputError(
                f"row {row} of {name} holds NaN or infinity; expected finite numbers, look at the model or the file"
            )
    return matrix


def check_labels(labels: Tensor | NDArray[Any], rows: int, name: str, of: str = "embeddings") -> NDArray[np.int64]:
    """Labels as int64 [rows]. Raises EvaluationInputError for other types, lengths, and values int64 can't hold.

    rows: how many labels are expected. of: what has one each.
    """
    array = as_array(labels, name)
    if array.dtype.kind not in "iu":
        raise EvaluationInputError(f"{name} are {array.dtype}; expected integers, as only these compare exactly")
    if array.shape != (rows,):
        raise EvaluationInputError(f"{name} have shape {array.shape}; expected one label for each of the {rows} {of}")
    if array.dtype.kind == "u" and (array > np.iinfo(np.int64).max).any():
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
