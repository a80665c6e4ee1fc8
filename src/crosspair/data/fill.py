"""Records to the files of a data set, a chunk at a time, going on from the whole chunks that an earlier run left."""

import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from crosspair.data.conversion import CONVERTER, Converted, convert_images
from crosspair.data.duplicates import DuplicateFinder, SeenNames
from crosspair.data.journal import Chunk, Journal, stamp
from crosspair.data.layout import Manifest, Skipped
from crosspair.data.records import Record, caption_problem, check_record, is_unicode, printable
from crosspair.data.writer import DataWriter
from crosspair.errors import UserError
from crosspair.progress import progress_bar

JOURNAL = "journal.jsonl"  # in a work folder
DATA = "data"
CHUNK_RECORDS = 256  # of a chunk, which is in memory, and all that a killed run loses
CHUNK_BYTES = 8 << 20  # about; a chunk ends as soon as it is larger

OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Filled:
    """A data set in a work folder, whole but for its name."""

    manifest: Manifest
    source_bytes: int  # of the pictures that are in
    image_bytes: int  # stored for them
    taken_over: int  # pictures that an earlier run had stored


def fill(
    records: Iterable[Record],
    work: Path,
    source: dict[str, Any],
    *,
    size: int,
    workers: int,
    on_error: OnError,
    folder: Path | None = None,
    progress: bool = True,
) -> Filled:
    """Write the data set of some records below `work`, which is this process's alone, or what is missing of it there.

    The options are those of `prepare`. folder: a picture whose path begins with it must be in it, wherever links lead.
    Every byte depends on the records and on `size` alone, not on the workers or on how often the work was interrupted.
    """
    total = operator.length_hint(records) or None
    records = _consistent(records)
    first = next(records, None)
    if first is None:
        raise UserError("the source has no pictures; expected at least one")
    records = chain([first], records)
    tally = _Tally()
    with (
        Journal(work / JOURNAL, {"size": size, "converter": CONVERTER}) as journal,
        DataWriter(work / DATA, first.tokens is not None, first.caption_ids is not None) as writer,
        progress_bar(total=total, desc="prepare", unit=" pictures", disable=not progress) as bar,
    ):
        for done in journal.chunks():
            chunk = list(islice(records, done.records))
            allowed = on_error == "skip" or not done.skipped
            if not (allowed and stamp(chunk) == done.stamp and writer.take_over(done.ends)):
                records = chain(chunk, records)
                break
            tally.enter(chunk, done)
            bar.update(len(chunk))
        taken_over = tally.images
        journal.start()
        writer.start()
        for chunk, images, is_full in _chunks(convert_images(records, size, workers, folder)):
            new = _add(writer, chunk, images, on_error)
            tally.enter(chunk, new)
            if is_full:  # the last one would be longer if the source had grown in the meantime
                journal.add(replace(new, stamp=stamp(chunk), ends=writer.flush()))
            bar.update(len(chunk))
        if not tally.images:
            raise _nothing_left(tally.skipped)
        manifest = writer.finish(source, size, tally.skipped, tally.duplicates.found)
    return Filled(manifest, tally.source_bytes, tally.image_bytes, taken_over)


class _Tally:
    """What is known of all records so far."""

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self.duplicates = DuplicateFinder()
        self.images = self.source_bytes = self.image_bytes = 0

    def enter(self, records: list[Record], chunk: Chunk) -> None:
        left_out = {one.image_id for one in chunk.skipped}
        stored = [record for record in records if record.image_id not in left_out]
        for record, image_digest in zip(stored, chunk.each_digest(), strict=True):
            self.duplicates.add(record, image_digest)
        self.skipped += chunk.skipped
        self.images += len(stored)
        self.source_bytes += chunk.source_bytes
        self.image_bytes += chunk.image_bytes


def _chunks(images: Iterator[tuple[Record, Converted]]) -> Iterator[tuple[list[Record], list[Converted], bool]]:
    """Records with their pictures, a chunk at a time, and whether it is full; only the last may not be.

    Where one ends depends on the records alone: so does, through the batches of the files, every byte of these.
    """
    records: list[Record] = []
    converted: list[Converted] = []
    size = 0
    for record, image in images:
        records.append(record)
        converted.append(image)
        size += len(image.data) + sum(map(len, record.captions))
        if len(records) == CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield records, converted, True
            records, converted, size = [], [], 0
    if records:
        yield records, converted, False


def _add(writer: DataWriter, records: list[Record], images: list[Converted], on_error: OnError) -> Chunk:
    """Hand a chunk to the writer, without what can't be used; what the journal says of it."""
    skipped: list[Skipped] = []
    stored: list[Converted] = []
    for record, converted in zip(records, images, strict=True):
        problem = caption_problem(record) or converted.problem
        if problem and on_error == "stop":
            raise _unusable(record, problem)
        if problem:
            skipped.append(Skipped(record.image_id, record.split, problem))
        else:
            writer.add(record, converted.data)
            stored.append(converted)
    return Chunk(
        len(records),
        digests=b"".join(one.digest for one in stored).hex(),
        skipped=skipped,
        source_bytes=sum(one.source_bytes for one in stored),
        image_bytes=sum(len(one.data) for one in stored),
    )


def _consistent(records: Iterable[Record]) -> Iterator[Record]:
    """The records, as long as no two share their name and what names and numbers them can be stored."""
    names = SeenNames()
    for record in records:
        check_record(record)
        name = printable(record.image_id)
        if not names.add(record.image_id):
            raise UserError(f"{name} comes twice; expected every picture once, with all its captions")
        if not is_unicode(record.image_id):
            raise UserError(f"the picture {name} has a name that is not Unicode; rename it")
        if not re.fullmatch(r"\w{1,60}", record.split):
            raise UserError(f"{name} is in split {record.split[:80]!r}; expected a name of letters, digits and _")
        yield record


def _unusable(record: Record, problem: str) -> UserError:
    name = printable(str(record.image) if isinstance(record.image, Path) else record.image_id)
    return UserError(f"{name} {problem}; repair the source, or leave such pictures out with --on-error skip")


def _nothing_left(skipped: list[Skipped]) -> UserError:
    first = f"{printable(skipped[0].image_id)} {skipped[0].reason}"
    return UserError(
        f"all {len(skipped):,} pictures had to be skipped (the first: {first}); "
        "check that --images names the folder they lie in"
    )
