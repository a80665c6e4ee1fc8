"""Rows to Arrow files that `datasets.load_from_disk` opens, one file per split, a few megabytes in memory at a time."""

import hashlib
import json
import mmap
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crosspair.data.journal import Place
from crosspair.data.layout import (
    ARROW_FILE,
    DATASET_DICT,
    MANIFEST,
    Duplicate,
    Manifest,
    Skipped,
    SplitFacts,
    split_order,
)
from crosspair.data.records import Record
from crosspair.version import __version__

if TYPE_CHECKING:
    from datasets import Features

# An Arrow stream is its schema, its batches and this, each a message of its own: a file can be cut behind any batch and
# continued, which pyarrow's own writer can't.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_BATCHES_MAPPED = 256  # of a file that is read again, before its pages are given back


class DataWriter:
    """Writes the splits of a data set below `directory`; `finish` makes it one that can be opened.

    Rows reach the files at each `flush`, as one batch a split. A directory that an earlier writer left half-written is
    taken over batch by batch with `take_over`; `start` cuts off the rest.
    """

    def __init__(self, directory: Path, with_tokens: bool, with_caption_ids: bool = False) -> None:
        self.directory = directory
        self._features = _features(with_tokens, with_caption_ids)
        self._splits: dict[str, _SplitWriter] = {}
        directory.mkdir(exist_ok=True)

    def __enter__(self) -> "DataWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for writer in self._splits.values():
            writer.close()

    def take_over(self, ends: dict[str, Place]) -> bool:
        """Go on behind the next batches in the files, if that leads to `ends`; whether it does."""
        states = {}
        for name, place in ends.items():
            split = self._splits.get(name) or _SplitWriter(self.directory / name, self._features, begun=True)
            self._splits[name] = split
            state = split.read_on(place)
            if state is None:
                return False
            states[name] = state
        for name, state in states.items():
            self._splits[name].state = state
        return True

    def start(self) -> None:
        """Cut off what was not taken over."""
        for path in self.directory.iterdir():
            split = self._splits.get(path.name)
            if split is not None and split.state.images:
                split.start()
            else:
                self._splits.pop(path.name, None)
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def add(self, record: Record, image: bytes) -> None:
        """Append a row to the record's split."""
        if record.split not in self._splits:
            self._splits[record.split] = _SplitWriter(self.directory / record.split, self._features)
        self._splits[record.split].add(record, image)

    def flush(self) -> dict[str, Place]:
        """Have all rows in the files; where each ends."""
        return {name: split.flush() for name, split in self._splits.items()}

    def finish(
        self, source: dict[str, Any], size: int, skipped: list[Skipped], duplicates: list[Duplicate]
    ) -> Manifest:
        """Close the files and write what describes them."""
        names = split_order(list(self._splits))
        splits = {name: self._splits[name].finish(name) for name in names}
        (self.directory / DATASET_DICT).write_text(json.dumps({"splits": names}))
        manifest = Manifest(source, size, splits, skipped, duplicates, __version__)
        (self.directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return manifest


@dataclass(frozen=True)
class _State:
    """How far a split's file is."""

    place: Place
    checksum: "hashlib._Hash"  # of the rows; never changed once it is here
    images: int = 0
    captions: int = 0

    def behind(self, data: Any, rows: list[dict[str, Any]]) -> "_State":
        """The state when the file holds `data` too, a batch of `rows`."""
        place = Place(self.place.bytes + len(data), zlib.crc32(data, self.place.crc))
        checksum = self.checksum.copy()
        for row in rows:
            image = row["image"]["bytes"]
            described = [row["image_id"], row["label"], row["captions"], row.get("tokens"), len(image)]
            described += [row["caption_ids"]] if "caption_ids" in row else []
            checksum.update(json.dumps(described).encode())
            checksum.update(image)
        captions = self.captions + sum(len(row["captions"]) for row in rows)
        return _State(place, checksum, self.images + len(rows), captions)


class _SplitWriter:
    def __init__(self, directory: Path, features: "Features", begun: bool = False) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.features = features
        self.schema = features.arrow_schema
        self.path = directory / ARROW_FILE
        self.rows: list[dict[str, Any]] = []
        self.file = self.path.open("r+b" if begun and self.path.exists() else "w+b")
        header = self.schema.serialize().to_pybytes()
        self.state = _State(Place(len(header), zlib.crc32(header)), hashlib.sha256())
        if not begun:
            self.file.write(header)
        elif self.file.read(len(header)) != header:
            self.file.truncate(0)  # nothing in it can be taken over

    def read_on(self, place: Place) -> _State | None:
        """The state behind the next batch of the file, if it ends at `place`; None for a file that doesn't hold it."""
        if place == self.state.place:
            return self.state
        start = self.state.place
        data = self.file.read(max(0, place.bytes - start.bytes))
        if Place(start.bytes + len(data), zlib.crc32(data, start.crc)) != place:
            return None
        return self.state.behind(data, pa.ipc.read_record_batch(pa.py_buffer(data), self.schema).to_pylist())

    def start(self) -> None:
        self.file.seek(self.state.place.bytes)
        self.file.truncate()

    def add(self, record: Record, image: bytes) -> None:
        row: dict[str, Any] = {
            "image": {"bytes": image, "path": None},
            "image_id": record.image_id,
            "label": record.label,
            "captions": list(record.captions),
        }
        if ("tokens" in self.features) != (record.tokens is not None):
            raise ValueError(f"{record.image_id}: either every record of a source has tokens, or none")
        if record.tokens is not None:
            row["tokens"] = [list(words) for words in record.tokens]
        if ("caption_ids" in self.features) != (record.caption_ids is not None):
            raise ValueError(f"{record.image_id}: either every record of a source has ids of its captions, or none")
        if record.caption_ids is not None:
            row["caption_ids"] = list(record.caption_ids)
        self.rows.append(row)

    def flush(self) -> Place:
        if self.rows:
            data = pa.RecordBatch.from_pylist(self.rows, schema=self.schema).serialize()
            self.file.write(data)
            self.file.flush()
            self.state = self.state.behind(data, self.rows)
        self.rows = []
        return self.state.place

    def finish(self, name: str) -> SplitFacts:
        from datasets import DatasetInfo

        self.flush()
        self.file.write(_END_OF_STREAM)
        self.file.close()
        checksum = self.state.checksum.hexdigest()
        DatasetInfo(features=self.features).write_to_directory(str(self.directory))
        state: dict[str, Any] = {
            "_data_files": [{"filename": ARROW_FILE}],
            "_fingerprint": checksum[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        (self.directory / "state.json").write_text(json.dumps(state, indent=2))
        size = self.path.stat().st_size
        return SplitFacts(
            self.state.images, self.state.captions, _distinct_labels(self.path, self.state.images), size, checksum
        )

    def close(self) -> None:
        self.file.close()


def _distinct_labels(path: Path, images: int) -> int:
    """How many labels a split has, from its file: a set of them would grow with the records by much more.

    What was read of the mapped file is given back on the way, since it counts as this process's memory.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    labels, end = np.empty(images, np.int64), 0
    with pa.ipc.open_stream(pa.py_buffer(mapped)) as stream:
        for number, batch in enumerate(stream, 1):
            start, end = end, end + len(batch)
            labels[start:end] = batch.column("label")
            if number % _BATCHES_MAPPED == 0:
                mapped.madvise(mmap.MADV_DONTNEED)
    labels.sort()
    return 1 + int(np.count_nonzero(labels[1:] != labels[:-1]))


def _features(with_tokens: bool, with_caption_ids: bool) -> "Features":
    from datasets import Features, Image, List, Value

    columns: dict[str, Any] = {
        "image": Image(),
        "image_id": Value("string"),
        "label": Value("int64"),
        "captions": List(Value("string")),
    }
    if with_tokens:
        columns["tokens"] = List(List(Value("string")))
    if with_caption_ids:
        columns["caption_ids"] = List(Value("int64"))
    return Features(**columns)
