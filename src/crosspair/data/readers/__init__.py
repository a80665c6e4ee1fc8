"""One reader per annotation format, by the name the command line knows it by."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from crosspair.data.readers.columns import Columns
from crosspair.data.readers.fine_grained import read_fine_grained
from crosspair.data.readers.folder import read_folder
from crosspair.data.readers.huggingface import read_huggingface
from crosspair.data.readers.karpathy import read_karpathy
from crosspair.data.readers.pedes import read_cuhk_pedes, read_icfg_pedes, read_rstpreid
from crosspair.data.readers.table import read_table
from crosspair.data.readers.tfrecord import read_tfrecords
from crosspair.data.readers.webdataset import read_webdataset
from crosspair.data.records import Record
from crosspair.errors import UserError

# A reader checks the whole annotation file before it yields, so that a wrong file fails in seconds, not in hours;
# those of formats that hold their pictures check as they go. What it returns has a length when the records can be gone
# through again, and then most of it is on disk if there can be many.
Reader = Callable[[Path, Path], Iterable[Record]]

READERS: dict[str, Reader] = {
    "flickr8k": read_karpathy,
    "flickr30k": read_karpathy,
    "coco": read_karpathy,
    "cuhk-pedes": read_cuhk_pedes,
    "icfg-pedes": read_icfg_pedes,
    "rstpreid": read_rstpreid,
    "cub": read_fine_grained,
    "flowers": read_fine_grained,
    "table": read_table,
    "folder": read_folder,
    "huggingface": read_huggingface,
    "webdataset": read_webdataset,
    "tfrecord": read_tfrecords,
}

# Those whose columns can be named.
WITH_COLUMNS: dict[str, Callable[[Path, Path, Columns | None], Iterable[Record]]] = {
    "table": read_table,
    "huggingface": read_huggingface,
}

# Formats whose annotations hold the pictures themselves: --images is not needed.
IMAGES_INSIDE = {"huggingface", "tfrecord", "webdataset"}

# Formats whose pictures hold the annotations: --annotations is not needed.
ANNOTATIONS_INSIDE = {"folder"}


def reader(name: str, columns: Columns | None = None, merge_restval: bool = False) -> Reader:
    """The reader of a format. Raises UserError when there is none, or when it has no such option."""
    if name not in READERS:
        raise UserError(f"there is no format '{name}'; expected one of {', '.join(sorted(READERS))}")
    named = columns is not None and columns != Columns()
    if named and name not in WITH_COLUMNS:
        expected = " and ".join(sorted(WITH_COLUMNS))
        raise UserError(f"{name} has no columns to name; --image-column and --caption-column are for {expected}")
    if merge_restval and name != "coco":
        raise UserError(f"{name} has no split restval; --merge-restval is for coco")
    if named:
        return lambda annotations, images: WITH_COLUMNS[name](annotations, images, columns)
    if merge_restval:
        return lambda annotations, images: _restval_as_train(READERS[name](annotations, images))
    return READERS[name]


def _restval_as_train(records: Iterable[Record]) -> list[Record]:
    return [replace(record, split="train") if record.split == "restval" else record for record in records]
