"""Splits for a source that has none: by label, so that no identity is in two of them, and the same for a seed."""

import hashlib
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from cmpl.data.records import Record, printable
from cmpl.errors import UserError

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


def with_splits(read: Callable[[], Iterator[Record]], shares: Shares | None, seed: int) -> Iterator[Record]:
    """The records of a source, each in a split: its own, or one drawn by `seed` when the source has none (split "").

    read: starts reading the source from its beginning; with `shares` it is called twice when its records are not in
    memory, which an iterator tells by its length.
    Raises UserError when the source has splits and `shares` are given, or has none and they are not.
    """
    if shares is None:
        records = read()
        return _Counted(_with_own_splits(records), operator.length_hint(records))
    counts: Counter[int] = Counter()
    records = read()
    if operator.length_hint(records):
        held = list(records)
        read = partial(iter, held)
        records = iter(held)
    for record in records:
        if record.split:
            raise UserError(f"the source has splits of its own ({record.split} is one); leave --split out")
        counts[record.label] += 1
    chosen = draw_splits(counts, shares, seed)
    return _Counted((replace(record, split=chosen[record.label]) for record in read()), counts.total())


class _Counted(Iterator[Record]):
    """An iterator that knows about how many records it has, for the progress bar."""

    def __init__(self, records: Iterator[Record], count: int) -> None:
        self.records = records
        self.count = count

    def __next__(self) -> Record:
        return next(self.records)

    def __length_hint__(self) -> int:
        return self.count


def draw_splits(counts: Counter[int], shares: Shares, seed: int) -> dict[int, str]:
    """The split of every label. counts: the pictures of each.

    Labels are taken in an order drawn by `seed` until test and then val have their share of the pictures as nearly as
    labels allow, and at least one label each; train gets the others. Raises UserError when labels are too few.
    """

    def draw(label: int) -> bytes:
        return hashlib.sha256(f"{seed}:{label}".encode()).digest()

    splits = {name: share for name, share in (("test", shares.test), ("val", shares.val)) if share}
    if 0 < len(counts) <= len(splits):
        raise UserError(
            f"the source has {len(counts):,} labels, too few to fill train, {' and '.join(splits)}; no label can be in "
            "two splits, give val or test the share 0"
        )
    waiting = sorted(counts, key=draw)  # no library's generator, whose numbers may change with its version
    chosen: dict[int, str] = {}
    for later, (name, share) in zip((len(splits), 1), splits.items(), strict=False):
        filled, room = 0, share * counts.total()
        while not filled or (len(waiting) > later and filled + counts[waiting[-1]] / 2 <= room):
            label = waiting.pop()
            chosen[label] = name
            filled += counts[label]
    return chosen | dict.fromkeys(waiting, "train")


def _with_own_splits(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        if not record.split:
            raise UserError("the source has no splits; add --split 0.8,0.1,0.1 (train, val, test) to draw them")
        yield record
