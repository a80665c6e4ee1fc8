"""Pictures and captions of any source to a DATA directory: each picture decoded once and stored once.

While it works, the data grow in `.DATA.partial` beside DATA, with a journal of what is whole (see
crosspair.data.journal). A run that is killed leaves that folder, and the same command goes on from it.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosspair.data.fill import DATA, JOURNAL, OnError, fill
from crosspair.data.journal import converted_images
from crosspair.data.layout import Duplicate, Skipped, SplitFacts, describe_duplicates, describe_skipped
from crosspair.data.reader import Reader
from crosspair.data.records import Record
from crosspair.data.splitting import Shares, with_splits
from crosspair.errors import UserError
from crosspair.storage.files import claimed, full_disk_is_an_error, refuse_occupied, remove_abandoned, write_through

DEFAULT_SIZE = 256


@dataclass(frozen=True)
class Summary:
    """What `prepare` did."""

    output: Path
    splits: dict[str, SplitFacts]
    skipped: list[Skipped]
    source_bytes: int  # of the pictures that are in
    image_bytes: int  # stored for them
    seconds: float
    duplicates: list[Duplicate] = field(default_factory=list)
    taken_over: int = 0  # pictures that an earlier run, which was interrupted, had stored


def prepare_format(
    name: str,
    annotations: Path | None,
    images: Path | None,
    output: Path,
    *,
    size: int = DEFAULT_SIZE,
    workers: int | None = None,
    on_error: OnError = "stop",
    split: str | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Prepare a data set in a registered format; the closing summary. Raises UserError.

    images: where the images lie, for a format that doesn't hold them in its annotations. split: the shares of train,
    val and test ("0.8,0.1,0.1") that `seed` draws by label, for a source without splits. options: the reader's own, as
    {"merge_restval": True} for coco. Counts that differ from the published ones are a warning on stderr.
    """
    reader, options = Reader(name), options or {}
    read = reader.bind(annotations, images, options)
    shares = None if split is None else Shares.parse(split)
    places = {"annotations": annotations, "images": images}
    source: dict[str, Any] = {"format": name, **{key: str(path) for key, path in places.items() if path is not None}}
    source |= options
    if split is not None:
        source |= {"split": split, "seed": seed}
    summary = _prepare(
        lambda: with_splits(read, shares, seed),
        output,
        source,
        size=size,
        workers=workers,
        on_error=on_error,
        folder=images,
    )
    for line in reader.differences(summary.splits, options):
        print(f"crosspair: warning: {line}", file=sys.stderr)
    return describe(summary)


def prepare(
    records: Iterable[Record],
    output: Path,
    *,
    source: dict[str, Any],
    size: int = DEFAULT_SIZE,
    workers: int | None = None,
    on_error: OnError = "stop",
    progress: bool = True,
) -> Summary:
    """Write a DATA directory; it appears under its name when it is whole. Rows are in the order of the records.

    source: where the records come from, kept in `crosspair.json`. size: pixels of the shorter side, larger pictures are
    brought to it; 0 keeps their bytes. workers: processes, default one a core; the result is the same for any number.
    on_error: `skip` leaves out a picture that can't be used, with a line in `crosspair.json` and in the summary.
    Raises UserError naming the picture that can't be used, and for records that contradict each other.
    """
    options: dict[str, Any] = {"size": size, "workers": workers, "on_error": on_error, "progress": progress}
    return _prepare(lambda: records, output, source, **options)


def _prepare(
    read: Callable[[], Iterable[Record]],
    output: Path,
    source: dict[str, Any],
    *,
    size: int,
    workers: int | None,
    on_error: OnError,
    **options: Any,
) -> Summary:
    """`prepare` with what `read` returns, called when nothing is in the way: reading annotations may take long."""
    if size < 0:
        raise UserError(f"found --size {size}; expected pixels of the shorter side, or 0 to keep the pictures' bytes")
    if on_error not in ("stop", "skip"):
        raise UserError(f"found --on-error {on_error}; expected stop or skip")
    workers = _worker_count(workers)
    output = output.resolve()  # "." has no name, and a link stays one
    start = time.monotonic()
    with _work_folder(output) as work:
        filled = fill(read(), work, source, size=size, workers=workers, on_error=on_error, **options)
        write_through(work / DATA)
        (work / DATA).rename(output)
    manifest = filled.manifest
    return Summary(
        output,
        manifest.splits,
        manifest.skipped,
        filled.source_bytes,
        filled.image_bytes,
        time.monotonic() - start,
        manifest.duplicates,
        filled.taken_over,
    )


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """The folder beside `output` in which it grows, this process's alone.

    It is removed at the end, unless the block fails and something in it is worth going on from. Raises UserError when
    another process has it and when `output` is there already.
    """
    work = output.with_name(f".{output.name}.partial")
    with full_disk_is_an_error(output), claimed(work, f"the data in {output}"):
        try:
            refuse_occupied(output, "the data")
            remove_abandoned(output)
            with full_disk_is_an_error(output):  # which says how much is free before any of it is freed
                yield work
        except BaseException:
            kept = converted_images(work / JOURNAL) if (work / DATA).is_dir() else 0
            if kept:
                print(f"kept {kept:,} pictures in {work}; the same command goes on from there", file=sys.stderr)
            else:
                shutil.rmtree(work)
            raise
        shutil.rmtree(work)


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
    lines += describe_skipped(summary.skipped) + describe_duplicates(summary.duplicates)
    lines.append(f"data: {summary.output}")
    return "\n".join(lines)


def _worker_count(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise UserError(f"found --workers {workers}; expected at least 1")
    return workers
