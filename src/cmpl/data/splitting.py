"""Splits for a source that has none: by label, so that no identity is in two of them, and the same for a seed."""

import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpl.data.records import Record, check_label, printable
from cmpl.errors import UserError

Integers = NDArray[np.integer[Any]]

SPLITS = ("train", "val", "test")
_FIX = "give three parts of 1 for train, val and test, as in --split 0.8,0.1,0.1"


@dataclass(frozen=True)
class Shares:
    """Which part of the pictures each split gets: 0..1, together 1."""

    train: float
    val: float
    test: float

    @classmethod
    def parse(cls, text: str) -> "Shares":
        """From "0.8,0.1,0.1". Raises UserError."""
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        possible = len(numbers) == 3 and all(0 <= number <= 1 for number in numbers) and numbers[0] > 0
        if not possible or not math.isclose(sum(numbers), 1, abs_tol=1e-6):
            raise UserError(f"found --split {printable(text)}; {_FIX} (0 leaves val or test out)")
        return cls(*numbers)


def with_splits(read: Callable[[], Iterable[Record]], shares: Shares | None, seed: int) -> Iterator[Record]:
    """The records of a source, each in a split: its own, or one drawn by `seed` when the source has none (split "").

    read: starts reading the source from its beginning; with `shares` it is called twice unless it returns records that
    can be gone through again, which have a length.
    Raises UserError when the source has splits and `shares` are given, or has none and they are not.
    """
    records = read()
    if shares is None:
        return _Counted(_with_own_splits(records), operator.length_hint(records))
    again = read if not isinstance(records, Sized) else lambda: records
    labels, pictures = np.unique(np.fromiter(_labels(records), np.int64), return_counts=True)
    chosen = draw_splits(labels, pictures, shares, seed)
    return _Counted(_drawn(again(), labels, chosen), int(pictures.sum()))


def _labels(records: Iterable[Record]) -> Iterator[int]:
    for record in records:
        if record.split:
            raise UserError(f"the source has splits of its own ({record.split} is one); leave --split out")
        check_label(record)
        yield record.label


def _drawn(records: Iterable[Record], labels: Integers, chosen: Integers) -> Iterator[Record]:
    for record in records:
        yield replace(record, split=SPLITS[chosen[np.searchsorted(labels, record.label)]])


class _Counted(Iterator[Record]):
    """An iterator that knows about how many records it has, for the progress bar."""

    def __init__(self, records: Iterator[Record], count: int) -> None:
        self.records = records
        self.count = count

    def __next__(self) -> Record:
        return next(self.records)

    def __length_hint__(self) -> int:
        return self.count


def draw_splits(labels: Integers, pictures: Integers, shares: Shares, seed: int) -> Integers:
    """The split of every label, as its place in SPLITS [k]. labels [k], pictures [k]: how many pictures have it.

    Labels are taken in an order drawn by `seed` until test and then val have their share of the pictures as nearly as
    labels allow, and at least one label each; train gets the others. Raises UserError when labels are too few.
    """

    def draw(label: int) -> int:  # no library's generator, whose numbers may change with its version
        return int.from_bytes(hashlib.sha256(f"{seed}:{label}".encode()).digest()[:8])

    splits = {name: share for name, share in (("test", shares.test), ("val", shares.val)) if share}
    if 0 < len(labels) <= len(splits):
        raise UserError(
            f"the source has {len(labels):,} labels, too few to fill train, {' and '.join(splits)}; no label can be in "
            "two splits, give val or test the share 0"
        )
    chosen = np.full(len(labels), SPLITS.index("train"), dtype=np.int8)
    order = np.argsort(np.fromiter(map(draw, labels), np.uint64, len(labels)), kind="stable")
    waiting = len(order)  # how many of them, from the first on, are in no split yet
    for later, (name, share) in zip((len(splits), 1), splits.items(), strict=False):
        filled, room = 0, share * int(pictures.sum())
        while waiting and (not filled or (waiting > later and filled + pictures[order[waiting - 1]] / 2 <= room)):
            waiting -= 1
            chosen[order[waiting]] = SPLITS.index(name)
            filled += int(pictures[order[waiting]])
    return chosen


def _with_own_splits(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        if not record.split:
            raise UserError("the source has no splits; add --split 0.8,0.1,0.1 (train, val, test) to draw them")
        yield record
