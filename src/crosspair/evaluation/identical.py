"""Identical rows of embeddings: items that no query can tell apart, of which the user is warned."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.inputs import warn_once

_PREFIX = 32  # columns that are compared first: few rows go any further
_CHUNK = 4096
_FEW = 0.01  # of all rows: copies under one label are usual, as two of a picture's captions may be the same words


@dataclass(frozen=True)
class Identical:
    """Rows that are bit-identical to another one of their matrix.

    rows: how many. example: two of them, of different labels if there are such. differ: whether any have.
    """

    rows: int
    example: tuple[int, int]
    differ: bool


def warn_of_identical_rows(matrix: NDArray[Any], labels: NDArray[np.int64], name: str) -> None:
    """One sentence on stderr when rows of [n, d] are identical, once for the same rows.

    Copies under one label are told of from a hundredth of all rows on, those under several always.
    """
    found = find_identical_rows(matrix, labels)
    if found is None or (not found.differ and found.rows < _FEW * len(matrix)):
        return
    one, other = found.example
    if found.differ:
        which = f"with labels {labels[one]} and {labels[other]}"
        meaning = "no query can tell them apart, and such ties count against the model"
        advice = "where they are the same item, give it once, or give both an equal label"
    else:
        which = f"both with label {labels[one]}"
        meaning = "each copy takes a place of its own in the rankings and is a query of its own"
        advice = "give each item once, or recall is lower than it should be"
    warn_once(
        f"{found.rows:,} of {len(matrix):,} rows of {name} are identical to another, such as rows {one} and {other}, "
        f"{which}: {meaning}; {advice}"
    )


def find_identical_rows(matrix: NDArray[Any], labels: NDArray[np.int64]) -> Identical | None:
    """Rows of floats [n, d] that are bit-identical to another; None where all differ."""
    rows = np.arange(len(matrix))
    for columns in (slice(_PREFIX), slice(None)):
        _, group, count = np.unique(_hashes(matrix, rows, columns), return_inverse=True, return_counts=True)
        shared = count[group] > 1
        rows, group = rows[shared], group[shared]
        if not len(rows):
            return None
    order = np.lexsort((labels[rows], group))  # equal ones beside each other, by label
    rows, group = rows[order], group[order]
    same = (group[1:] == group[:-1]) & _equal_to_next(matrix, rows)
    if not same.any():
        return None
    differ = same & (labels[rows[1:]] != labels[rows[:-1]])
    pairs = np.flatnonzero(differ if differ.any() else same)
    first = pairs[np.minimum(rows[pairs], rows[pairs + 1]).argmin()]
    one, other = sorted((int(rows[first]), int(rows[first + 1])))
    several = np.append(same, False) | np.append(False, same)
    return Identical(int(several.sum()), (one, other), bool(differ.any()))


def _equal_to_next(matrix: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether each of some rows has the bits of the next one [rows - 1]."""
    found = np.empty(len(rows) - 1, dtype=np.bool_)
    for start in range(0, len(found), _CHUNK):
        some = np.ascontiguousarray(matrix[rows[start : start + _CHUNK + 1]])
        bits = some.view(f"u{some.itemsize}")
        found[start : start + _CHUNK] = (bits[1:] == bits[:-1]).all(1)
    return found


def _hashes(matrix: NDArray[Any], rows: NDArray[np.intp], columns: slice) -> NDArray[np.uint64]:
    """64 bits of some columns of each row; rarely equal for different rows."""
    width = len(range(*columns.indices(matrix.shape[1])))
    weights = np.random.default_rng(0).integers(0, 2**64, width, dtype=np.uint64) | np.uint64(1)
    found = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), _CHUNK):
        some = np.ascontiguousarray(matrix[rows[start : start + _CHUNK], columns])
        # Bytes are swapped as the low bits of simple numbers are zero, and only low bits reach all of a product's.
        bits = some.view(f"u{some.itemsize}").byteswap().astype(np.uint64)
        found[start : start + _CHUNK] = (bits * weights).sum(1, dtype=np.uint64)
    return found
