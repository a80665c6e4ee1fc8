"""One reader per annotation format, by the name the command line knows it by."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cmpl.data.readers.karpathy import read_karpathy
from cmpl.data.records import Record
from cmpl.legacy.tfrecord import read_tfrecords

# A reader checks the whole annotation file before it yields, so that a wrong file fails in seconds, not in hours.
Reader = Callable[[Path, Path], Iterator[Record]]

READERS: dict[str, Reader] = {
    "flickr8k": read_karpathy,
    "flickr30k": read_karpathy,
    "coco": read_karpathy,
    "tfrecord": read_tfrecords,
}

# Formats whose annotations hold the pictures themselves: --images is not needed.
PICTURES_INSIDE = {"tfrecord"}
