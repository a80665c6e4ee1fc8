"""One reader per annotation format, by the name the command line knows it by."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cmpl.data.readers.columns import Columns
from cmpl.data.readers.karpathy import read_karpathy
from cmpl.data.readers.table import read_table
from cmpl.data.records import Record
from cmpl.errors import UserError
from cmpl.legacy.tfrecord import read_tfrecords

# A reader checks the whole annotation file before it yields, so that a wrong file fails in seconds, not in hours.
Reader = Callable[[Path, Path], Iterator[Record]]

READERS: dict[str, Reader] = {
    "flickr8k": read_karpathy,
    "flickr30k": read_karpathy,
    "coco": read_karpathy,
    "table": read_table,
    "tfrecord": read_tfrecords,
}

# Those whose columns can be named.
WITH_COLUMNS: dict[str, Callable[[Path, Path, Columns | None], Iterator[Record]]] = {"table": read_table}

# Formats whose annotations hold the pictures themselves: --images is not needed.
PICTURES_INSIDE = {"tfrecord"}


def reader(name: str, columns: Columns | None = None) -> Reader:
    """The reader of a format. Raises UserError when there is none, or when it has no `columns` to name."""
    if name not in READERS:
        raise UserError(f"there is no format '{name}'; expected one of {', '.join(sorted(READERS))}")
    if columns is None or columns == Columns():
        return READERS[name]
    if name not in WITH_COLUMNS:
        expected = " and ".join(sorted(WITH_COLUMNS))
        raise UserError(f"{name} has no columns to name; --picture-column and --caption-column are for {expected}")
    return lambda annotations, images: WITH_COLUMNS[name](annotations, images, columns)
