"""Pictures and captions of any source to a DATA directory: each picture decoded once and stored once."""

import operator
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cmpl.data.conversion import convert_pictures
from cmpl.data.duplicates import DuplicateFinder
from cmpl.data.layout import Duplicate, Skipped, SplitFacts, describe_duplicates, describe_skipped
from cmpl.data.published import differences
from cmpl.data.readers import ANNOTATIONS_INSIDE, PICTURES_INSIDE, reader
from cmpl.data.readers.columns import Columns
from cmpl.data.records import Record, caption_problem, is_unicode, printable
from cmpl.data.splitting import Shares, with_splits
from cmpl.data.writer import DataWriter
from cmpl.errors import UserError
from cmpl.files import refuse_occupied, whole_directory
from cmpl.progress import progress_bar

DEFAULT_SIZE = 256


@dataclass(frozen=True)
class Summary:
    """What `prepare` did."""

    output: Path
    splits: dict[str, SplitFacts]
    skipped: list[Skipped]
    source_bytes: int  # of the pictures that are in
    picture_bytes: int  # stored for them
    seconds: float
    duplicates: list[Duplicate] = field(default_factory=list)


def prepare_format(
    name: str,
    annotations: Path | None,
    images: Path | None,
    output: Path,
    *,
    size: int = DEFAULT_SIZE,
    workers: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    split: str | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    merge_restval: bool = False,
) -> str:
    """Prepare a data set in one of the known annotation formats; the closing summary. Raises UserError.

    images: where the pictures lie; None for a format that holds them in its annotations, as `annotations` for one
    whose pictures hold those. split: the shares of train, val and test ("0.8,0.1,0.1") that `seed` draws by label, for
    a source without splits. merge_restval: COCO's restval becomes train. Counts that differ from the published ones are
    a warning on stderr.
    """
    read = reader(name, columns, merge_restval)
    shares = None if split is None else Shares.parse(split)
    if images is None and name not in PICTURES_INSIDE:
        raise UserError(f"the annotations of {name} hold no pictures; give --images DIR, the folder they lie in")
    if annotations is None and name not in ANNOTATIONS_INSIDE:
        raise UserError(f"{name} needs its annotations; name them with --annotations")
    refuse_occupied(output, "the data")  # before a large annotation file is read
    places = {"annotations": annotations, "images": images}
    source: dict[str, Any] = {"format": name, **{key: str(path) for key, path in places.items() if path is not None}}
    if merge_restval:
        source["merge_restval"] = True
    if split is not None:
        source |= {"split": split, "seed": seed}
    given = [path for path in (annotations, images) if path is not None]
    records = with_splits(lambda: read(given[0], given[-1]), shares, seed)
    summary = prepare(records, output, source=source, size=size, workers=workers, on_error=on_error)
    for line in differences(name, summary.splits, merge_restval):
        print(f"cmpl: warning: {line}", file=sys.stderr)
    return describe(summary)


def prepare(
    records: Iterable[Record],
    output: Path,
    *,
    source: dict[str, Any],
    size: int = DEFAULT_SIZE,
    workers: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> Summary:
    """Write a DATA directory; it appears under its name when it is whole. Rows are in the order of the records.

    source: where the records come from, kept in `cmpl.json`. size: pixels of the shorter side, larger pictures are
    brought to it; 0 keeps their bytes. workers: processes, default one a core; the result is the same for any number.
    on_error: `skip` leaves out a picture that can't be used, with a line in `cmpl.json` and in the summary.
    Raises UserError naming the picture that can't be used, and for records that contradict each other.
    """
    if size < 0:
        raise UserError(f"found --size {size}; expected pixels of the shorter side, or 0 to keep the pictures' bytes")
    if on_error not in ("stop", "skip"):
        raise UserError(f"found --on-error {on_error}; expected stop or skip")
    workers = _worker_count(workers)
    output = output.absolute()
    refuse_occupied(output, "the data")
    start = time.monotonic()
    skipped: list[Skipped] = []
    duplicates = DuplicateFinder()
    total = operator.length_hint(records) or None
    source_bytes = picture_bytes = 0
    with whole_directory(output) as directory, DataWriter(directory) as writer:
        pictures = convert_pictures(_consistent(records), size, workers)
        with progress_bar(total=total, desc="prepare", unit=" pictures", disable=not progress) as bar:
            for record, converted in pictures:
                bar.update()
                problem = caption_problem(record) or converted.problem
                if problem:
                    if on_error == "stop":
                        raise _unusable(record, problem)
                    skipped.append(Skipped(record.image_id, record.split, problem))
                    continue
                writer.add(record, converted.data)
                duplicates.add(record, converted.digest)
                source_bytes += converted.source_bytes
                picture_bytes += len(converted.data)
        if not picture_bytes:
            raise _nothing_left(skipped)
        manifest = writer.finish(source, size, skipped, duplicates.found)
    seconds = time.monotonic() - start
    return Summary(output, manifest.splits, skipped, source_bytes, picture_bytes, seconds, duplicates.found)


def describe(summary: Summary) -> str:
    """The closing summary of `cmpl prepare`."""
    pictures = sum(facts.pictures for facts in summary.splits.values())
    ratio = summary.picture_bytes / summary.source_bytes
    lines = [f"{'split':<10}{'pictures':>10}{'captions':>11}{'labels':>9}"]
    for name, facts in summary.splits.items():
        lines.append(f"{name:<10}{facts.pictures:>10,}{facts.captions:>11,}{facts.labels:>9,}")
    lines.append(
        f"{pictures:,} pictures in {summary.seconds:.1f} s ({pictures / summary.seconds:,.0f} a second), "
        f"{summary.picture_bytes / 1e6:,.1f} MB, {ratio:.2f} of the {summary.source_bytes / 1e6:,.1f} MB read"
    )
    lines += describe_skipped(summary.skipped) + describe_duplicates(summary.duplicates)
    lines.append(f"data: {summary.output}")
    return "\n".join(lines)


def _worker_count(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise UserError(f"found --workers {workers}; expected at least 1")
    return workers


def _consistent(records: Iterable[Record]) -> Iterator[Record]:
    """The records, as long as no two share their name and what names and numbers them can be stored."""
    seen: set[str] = set()
    for record in records:
        name = printable(record.image_id)
        if record.image_id in seen:
            raise UserError(f"{name} comes twice; expected every picture once, with all its captions")
        seen.add(record.image_id)
        if not is_unicode(record.image_id):
            raise UserError(f"the picture {name} has a name that is not Unicode; rename it")
        if not -(2**63) <= record.label < 2**63:
            raise UserError(f"{name} has label {record.label}; expected a number of at most 64 bits")
        if not re.fullmatch(r"\w+", record.split):
            raise UserError(f"{name} is in split {record.split!r}; expected a name of letters, digits and _")
        yield record


def _unusable(record: Record, problem: str) -> UserError:
    name = printable(str(record.picture) if isinstance(record.picture, Path) else record.image_id)
    return UserError(f"{name} {problem}; repair the source, or leave such pictures out with --on-error skip")


def _nothing_left(skipped: list[Skipped]) -> UserError:
    if not skipped:
        return UserError("the source has no pictures; expected at least one")
    first = f"{printable(skipped[0].image_id)} {skipped[0].reason}"
    return UserError(
        f"all {len(skipped):,} pictures had to be skipped (the first: {first}); "
        "check that --images names the folder they lie in"
    )
