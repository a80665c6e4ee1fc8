"""Preparation of a DATA directory from any source: each image is decoded once and stored once.

While it works, the data grow in `.DATA.partial` beside DATA, with checkpoints that say what of it is whole (see
crosspair.data.writer). A run that is killed leaves that folder, and the same command goes on from it.
"""

import operator
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from crosspair.data.conversion import CONVERTER, convert_images
from crosspair.data.layout import (
    CaptionLeftOut,
    Duplicate,
    Manifest,
    Skipped,
    SplitFacts,
    describe_captions_left_out,
    describe_duplicates,
    describe_skipped,
)
from crosspair.data.reader import Reader
from crosspair.data.records import (
    Record,
    caption_problem,
    check_record,
    is_unicode,
    printable,
    without_bad_captions,
)
from crosspair.data.scratch import DuplicateFinder, SeenNames
from crosspair.data.splitting import Shares, with_splits
from crosspair.data.writer import Checkpoint, DataWriter, records_checksum, stored_images
from crosspair.errors import UserError
from crosspair.progress import progress_bar
from crosspair.storage.directories import prepare_work
from crosspair.storage.files import claimed, full_disk_is_an_error, refuse_occupied, remove_abandoned, write_through

DEFAULT_SIZE = 256
# Records between two checkpoints, which is all that a killed run loses: few at first, twice as many each time.
FIRST_CHECKPOINT_RECORDS = 256
CHECKPOINT_RECORDS = 4096  # at most
CHECKPOINT_BYTES = 128 << 20  # about; of stored images, captions, and images that the records hold in memory

OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Summary:
    """The outcome of a run of `prepare`."""

    output: Path
    splits: dict[str, SplitFacts]
    skipped: list[Skipped]
    source_bytes: int  # of the images that are in
    image_bytes: int  # stored for them
    seconds: float
    captions_left_out: list[CaptionLeftOut] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    taken_over: int = 0  # images that an earlier run, which was interrupted, had stored


def prepare_format(
    name: str,
    annotations: Path | None,
    images: Path | None,
    output: Path,
    *,
    size: int = DEFAULT_SIZE,
    processes: int | None = None,
    on_error: OnError = "stop",
    split_shares: str | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Prepare a data set in a registered format; the closing summary. Raises UserError.

    images: where the images lie, for a format that doesn't hold them in its annotations. split_shares: the shares of
    train, val and test ("0.8,0.1,0.1") that `seed` draws by label, for a source without splits. options: the reader's
    own, as {"merge_restval": True} for coco. Counts that differ from the published ones are a warning on stderr.
    """
    reader, options = Reader(name), options or {}
    read = reader.bind(annotations, images, options)
    shares = None if split_shares is None else Shares.parse(split_shares)
    places = {"annotations": annotations, "images": images}
    source: dict[str, Any] = {"format": name, **{key: str(path) for key, path in places.items() if path is not None}}
    source |= options
    if split_shares is not None:
        source |= {"split_shares": split_shares, "seed": seed}
    summary = _prepare(
        lambda: with_splits(read, shares, seed),
        output,
        source,
        size=size,
        processes=processes,
        on_error=on_error,
        folder=images,
    )
    for line in reader.differences(_with_left_out(summary), options):
        print(f"crosspair: warning: {line}", file=sys.stderr)
    return describe(summary)


def _with_left_out(summary: Summary) -> dict[str, SplitFacts]:
    """The counts of each split as its source has them: with the captions left out, which published counts include."""
    left_out = Counter(one.split for one in summary.captions_left_out)
    return {name: replace(facts, captions=facts.captions + left_out[name]) for name, facts in summary.splits.items()}


def prepare(
    records: Iterable[Record],
    output: Path,
    *,
    source: dict[str, Any],
    size: int = DEFAULT_SIZE,
    processes: int | None = None,
    on_error: OnError = "stop",
    progress: bool = True,
) -> Summary:
    """Write a DATA directory; it appears under its name when it is whole. Rows are in the order of the records.

    source: where the records come from, kept in `crosspair.json`. size: pixels of the shorter side, larger images are
    brought to it; 0 keeps their bytes. processes: default one a core; the result is the same for any number.
    on_error: `skip` leaves out an image that can't be used, with a line in `crosspair.json` and in the summary. Of an
    image with other captions, one that can't be used is left out in any case, listed there too.
    Raises UserError naming the image that can't be used, and for records that contradict each other.
    """
    options: dict[str, Any] = {"size": size, "processes": processes, "on_error": on_error, "progress": progress}
    return _prepare(lambda: records, output, source, **options)


def _prepare(
    read: Callable[[], Iterable[Record]],
    output: Path,
    source: dict[str, Any],
    *,
    size: int,
    processes: int | None,
    on_error: OnError,
    **options: Any,
) -> Summary:
    """`prepare` with what `read` returns, called when nothing is in the way: reading annotations may take long."""
    if size < 0:
        raise UserError(f"found --size {size}; expected pixels of the shorter side, or 0 to keep the pictures' bytes")
    if on_error not in ("stop", "skip"):
        raise UserError(f"found --on-error {on_error}; expected stop or skip")
    processes = _process_count(processes)
    output = output.resolve()  # "." has no name, and a link stays one
    start = time.monotonic()
    with _work_folder(output) as work:
        filled = _fill(read(), work, source, size=size, processes=processes, on_error=on_error, **options)
        write_through(work / "data")
        (work / "data").rename(output)
    manifest = filled.manifest
    return Summary(
        output,
        manifest.splits,
        manifest.skipped,
        filled.source_bytes,
        filled.image_bytes,
        time.monotonic() - start,
        manifest.captions_left_out,
        manifest.duplicates,
        filled.taken_over,
    )


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """The folder beside `output` in which it grows, this process's alone.

    It is removed at the end, unless the block fails and something in it is worth going on from. Raises UserError when
    another process has it and when `output` is there already.
    """
    work = prepare_work(output)
    with full_disk_is_an_error(output), claimed(work, f"the data in {output}"):
        try:
            refuse_occupied(output, "the data")
            remove_abandoned(output)
            with full_disk_is_an_error(output):  # which says how much is free before any of it is freed
                yield work
        except BaseException:
            kept = stored_images(work) if (work / "data").is_dir() else 0
            if kept:
                print(f"kept {kept:,} pictures in {work}; the same command goes on from there", file=sys.stderr)
            else:
                shutil.rmtree(work)
            raise
        shutil.rmtree(work)


@dataclass(frozen=True)
class _Filled:
    """A data set in a work folder, whole but for its name."""

    manifest: Manifest
    source_bytes: int  # of the images that are in
    image_bytes: int  # stored for them
    taken_over: int  # images that an earlier run had stored


def _fill(
    records: Iterable[Record],
    work: Path,
    source: dict[str, Any],
    *,
    size: int,
    processes: int,
    on_error: OnError,
    folder: Path | None = None,
    progress: bool = True,
) -> _Filled:
    """Write the data set of some records below `work`, which is this process's alone, or what is missing of it there.

    The options are those of `prepare`. folder: an image whose path begins with it must be in it, wherever links lead.
    Every byte depends on the records and on `size` alone, not on the processes or on how often it was interrupted.
    """
    total = operator.length_hint(records) or None
    captions_left_out: list[CaptionLeftOut] = []
    records = _consistent(records, captions_left_out)
    first = next(records, None)
    if first is None:
        raise UserError("the source has no pictures; expected at least one")
    records = chain([first], records)
    tally = _Tally()
    settings = {"size": size, "converter": CONVERTER}
    with (
        DataWriter(work, settings, first.tokens is not None, first.caption_ids is not None) as writer,
        progress_bar(total=total, desc="prepare", unit=" pictures", disable=not progress) as bar,
    ):
        for done in writer.checkpoints():
            some = list(islice(records, done.records))
            allowed = on_error == "skip" or not done.skipped
            if not (allowed and records_checksum(some) == done.checksum and writer.take_over(done)):
                records = chain(some, records)
                break
            left_out = {one.image_id for one in done.skipped}
            stored = [record for record in some if record.image_id not in left_out]
            for record, image_checksum in zip(stored, done.each_image_checksum(), strict=True):
                tally.duplicates.add(record, image_checksum)
            tally.add(done)
            bar.update(len(some))
        taken_over = tally.images
        writer.start()
        held = 0  # bytes since the last checkpoint
        for record, converted in convert_images(records, size, processes, folder):
            problem = caption_problem(record) or converted.problem
            if problem and on_error == "stop":
                raise _unusable(record, problem)
            if problem:
                writer.skip(record, problem)
            else:
                writer.add(record, converted.data, converted.source_bytes, converted.checksum)
                tally.duplicates.add(record, converted.checksum)
            held += len(converted.data) + sum(map(len, record.captions))
            held += len(record.image) if isinstance(record.image, bytes) else 0
            bar.update()
            # Where a shard ends depends on the records alone, and so does every byte of it. The last, which would be
            # longer if the source had grown in the meantime, gets no checkpoint.
            enough = min(CHECKPOINT_RECORDS, FIRST_CHECKPOINT_RECORDS << min(writer.number, 16))
            if writer.pending.records == enough or held >= CHECKPOINT_BYTES:
                tally.add(writer.pending)
                writer.checkpoint()
                held = 0
        tally.add(writer.pending)
        if not tally.images:
            raise _nothing_left(tally.skipped)
        skipped = {one.image_id for one in tally.skipped}
        captions_left_out = [one for one in captions_left_out if one.image_id not in skipped]
        manifest = writer.finish(source, size, tally.skipped, captions_left_out, tally.duplicates.found)
    return _Filled(manifest, tally.source_bytes, tally.image_bytes, taken_over)


class _Tally:
    """Counts over all records so far."""

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self.duplicates = DuplicateFinder()
        self.images = self.source_bytes = self.image_bytes = 0

    def add(self, checkpoint: Checkpoint) -> None:
        self.skipped += checkpoint.skipped
        self.images += checkpoint.records - len(checkpoint.skipped)
        self.source_bytes += checkpoint.source_bytes
        self.image_bytes += checkpoint.image_bytes


def _consistent(records: Iterable[Record], left_out: list[CaptionLeftOut]) -> Iterator[Record]:
    """The records, as long as no two share their name and what names and numbers them can be stored.

    They come without the captions that can't be used, which are added to `left_out`.
    """
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
        usable, bad = without_bad_captions(record)
        left_out += [CaptionLeftOut(record.image_id, record.split, one.number, one.reason) for one in bad]
        yield usable


def _unusable(record: Record, problem: str) -> UserError:
    name = printable(str(record.image) if isinstance(record.image, Path) else record.image_id)
    return UserError(f"{name} {problem}; repair the source, or leave such pictures out with --on-error skip")


def _nothing_left(skipped: list[Skipped]) -> UserError:
    first = f"{printable(skipped[0].image_id)} {skipped[0].reason}"
    return UserError(
        f"all {len(skipped):,} pictures had to be skipped (the first: {first}); "
        "check that --images names the folder they lie in"
    )


def describe(summary: Summary) -> str:
    """The closing summary of `crosspair prepare`."""
    images = sum(facts.images for facts in summary.splits.values())
    new = images - summary.taken_over
    ratio = summary.image_bytes / summary.source_bytes
    lines = [f"{'split':<10}{'images':>10}{'captions':>11}{'labels':>9}"]
    for name, facts in summary.splits.items():
        lines.append(f"{name:<10}{facts.images:>10,}{facts.captions:>11,}{facts.labels:>9,}")
    lines.append(
        f"{images:,} pictures in {summary.seconds:.1f} s ({new / summary.seconds:,.0f} a second), "
        f"{summary.image_bytes / 1e6:,.1f} MB, {ratio:.2f} of the {summary.source_bytes / 1e6:,.1f} MB read"
    )
    if summary.taken_over:
        lines.append(f"{summary.taken_over:,} of them were converted by an earlier run that was interrupted")
    lines += describe_skipped(summary.skipped) + describe_captions_left_out(summary.captions_left_out)
    lines += describe_duplicates(summary.duplicates)
    lines.append(f"data: {summary.output}")
    return "\n".join(lines)


def _process_count(processes: int | None) -> int:
    if processes is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes < 1:
        raise UserError(f"found --processes {processes}; expected at least 1")
    return processes
