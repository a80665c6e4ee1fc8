"""Random splits, drawn by label: no label is in two of them, and equal seeds give equal splits.

For a source that has none, or for one that lacks val alone: it is then drawn from train, and test (and COCO's restval)
stay as they are.
"""

import hashlib
import math
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.data.records import Record, check_record, printable
from crosspair.errors import UserError

Integers = NDArray[np.integer[Any]]

SPLITS = ("train", "val", "test")
_KEPT = ("test", "restval")  # a source's own that stay as they are while val is drawn from its train
_FIX = "give three parts of 1 for train, val and test, as in --split-shares 0.8,0.1,0.1"


@dataclass(frozen=True)
class Shares:
    """Shares of the images for each split: 0..1, together 1."""

    train: float
    val: float
    test: float

    @classmethod
    def parse(cls, text: str) -> "Shares":
        """Parse "0.8,0.1,0.1". Raises UserError."""
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        possible = len(numbers) == 3 and all(0 <= number <= 1 for number in numbers) and numbers[0] > 0
        if not possible or not math.isclose(sum(numbers), 1, abs_tol=1e-6):
            raise UserError(f"found --split-shares {printable(text)}; {_FIX} (0 leaves val or test out)")
        return cls(*numbers)


def with_splits(read: Callable[[], Iterable[Record]], shares: Shares | None, seed: int) -> Iterator[Record]:
    """The records of a source, each in a split: its own, or one drawn by `seed` when the source has none (split "").

    Shares without test also draw val from the train of a source that has no val.
    read: starts reading the source from its beginning; with `shares` it is called twice unless it returns records that
    can be gone through again, which have a length.
    Raises UserError when the source has splits that `shares` can't complete, or has none and they are not given.
    """
    records = read()
    if shares is None:
        return _Counted(_with_own_splits(records), operator.length_hint(records))
    again = read if not isinstance(records, Sized) else lambda: records
    found, count = _labels_to_draw(records, shares)
    labels, images = np.unique(found, return_counts=True)
    chosen = draw_splits(labels, images, shares, seed)
    return _Counted(_drawn(again(), labels, chosen), count)


def _labels_to_draw(records: Iterable[Record], shares: Shares) -> tuple[Integers, int]:
    """The label of every image whose split is drawn, and how many images there are with those of a given test."""
    labels, count = array("q"), 0
    for record in records:
        check_record(record)
        if record.split and (shares.test or record.split not in ("train", *_KEPT)):
            raise UserError(
                f"the source has splits of its own ({record.split} is one); leave --split-shares out, or if it lacks "
                "val alone, draw val from train with --split-shares 0.9,0.1,0"
            )
        count += 1
        if record.split not in _KEPT:
            labels.append(record.label)
    if count and not labels:
        raise UserError(
            "the source has no split train, and so no pictures to draw others from; leave --split-shares out"
        )
    return np.frombuffer(labels, np.int64) if labels else np.empty(0, np.int64), count


def _drawn(records: Iterable[Record], labels: Integers, chosen: Integers) -> Iterator[Record]:
    for record in records:
        yield (
            record
            if record.split in _KEPT
            else replace(record, split=SPLITS[chosen[np.searchsorted(labels, record.label)]])
        )


class _Counted(Iterator[Record]):
    """An iterator that knows about how many records it has, for the progress bar."""

    def __init__(self, records: Iterator[Record], count: int) -> None:
        self.records = records
        self.count = count

    def __next__(self) -> Record:
        return next(self.records)

    def __length_hint__(self) -> int:
        return self.count


def draw_splits(labels: Integers, images: Integers, shares: Shares, seed: int) -> Integers:
    """The split of every label, as its place in SPLITS [k]. labels [k], images [k]: how many images have it.

    Labels are taken in an order drawn by `seed` until test and then val have their share of the images as nearly as
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
        filled, room = 0, share * int(images.sum())
        while waiting and (not filled or (waiting > later and filled + images[order[waiting - 1]] / 2 <= room)):
            waiting -= 1
            chosen[order[waiting]] = SPLITS.index(name)
            filled += int(images[order[waiting]])
    return chosen


def _with_own_splits(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        check_record(record)
        if not record.split:
            raise UserError("the source has no splits; add --split-shares 0.8,0.1,0.1 (train, val, test) to draw them")
        yield record
