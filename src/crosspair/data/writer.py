"""Writer of Arrow files that `datasets.load_from_disk` opens, with checkpoints to resume a killed run from.

    WORK/data/train/data-00000.arrow        a shard: some thousand rows of one split
    WORK/checkpoints/00000.json             what its shards hold, and the records that they were made from

The open shards of all splits end together, and then their checkpoint is written. Going on from a killed run takes over
the shards of its checkpoints as they are and removes every other file: none is ever cut or continued.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crosspair.data.layout import (
    DATASET_DICT,
    MANIFEST,
    STATE,
    CaptionLeftOut,
    Duplicate,
    Manifest,
    Skipped,
    SplitFacts,
    arrow_file,
    split_order,
)
from crosspair.data.records import Record
from crosspair.data.scratch import CHECKSUM_BYTES, short_checksum
from crosspair.storage.files import write_text
from crosspair.version import __version__

if TYPE_CHECKING:
    from datasets import Features

BATCH_ROWS = 256  # of a batch in a shard, which is all of its rows that are in memory
BATCH_BYTES = 8 << 20  # about; a batch ends as soon as it is larger


@dataclass(frozen=True)
class Shard:
    """A whole Arrow file. crc: CRC-32 of its bytes."""

    bytes: int
    crc: int

    @classmethod
    def of(cls, path: Path) -> "Shard":
        size = crc = 0
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                size, crc = size + len(data), zlib.crc32(data, crc)
        return cls(size, crc)


@dataclass
class Checkpoint:
    """The outcome of a range of consecutive records: shards, checksums and what was skipped."""

    settings: dict[str, Any]  # that the stored bytes depend on
    records: int = 0
    checksum: str = ""  # of the records
    shards: dict[str, Shard] = field(default_factory=dict)  # of each split that has rows of them
    image_checksums: str = ""  # of the stored images' sources, in hexadecimal
    skipped: list[Skipped] = field(default_factory=list)
    source_bytes: int = 0  # of the stored images
    image_bytes: int = 0  # stored for them

    def each_image_checksum(self) -> list[bytes]:
        data = bytes.fromhex(self.image_checksums)
        return [data[start : start + CHECKSUM_BYTES] for start in range(0, len(data), CHECKSUM_BYTES)]

    @classmethod
    def read(cls, path: Path) -> "Checkpoint | None":
        """Read a checkpoint; None where there is none, or a damaged one."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            shards = {split: Shard(**shard) for split, shard in fields.pop("shards").items()}
            skipped = [Skipped(**one) for one in fields.pop("skipped")]
            return cls(shards=shards, skipped=skipped, **fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def stored_images(work: Path) -> int:
    """The number of images stored by the checkpoints of a work folder."""
    return sum(one.records - len(one.skipped) for one in _checkpoints(work / "checkpoints"))


def _checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Checkpoints in their order, up to the first that is missing or damaged."""
    number = 0
    while (checkpoint := Checkpoint.read(_checkpoint_file(folder, number))) is not None:
        yield checkpoint
        number += 1


def _checkpoint_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


class DataWriter:
    """Writes a data set below `work`/data, a checkpoint at a time; `finish` makes it one that can be opened.

    settings: what the stored bytes depend on besides the records. The checkpoints that an earlier writer left are taken
    over one by one with `take_over`; `start` removes the others and what they don't speak of.
    """

    def __init__(
        self, work: Path, settings: dict[str, Any], with_tokens: bool = False, with_caption_ids: bool = False
    ) -> None:
        self.data = work / "data"
        self._checkpoints = work / "checkpoints"
        self._features = _features(with_tokens, with_caption_ids)
        self._settings = settings
        self._splits: dict[str, _SplitWriter] = {}
        self.number = 0  # of the next checkpoint
        self.data.mkdir(exist_ok=True)
        self._checkpoints.mkdir(exist_ok=True)
        self._begin()

    def __enter__(self) -> "DataWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for split in self._splits.values():
            split.abandon()

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Checkpoints of an earlier run with the same settings, in their order."""
        for checkpoint in _checkpoints(self._checkpoints):
            if checkpoint.settings != self._settings:
                return
            yield checkpoint

    def take_over(self, checkpoint: Checkpoint) -> bool:
        """Resume after the next checkpoint if its shards are as they were written; whether they are."""
        for name, shard in checkpoint.shards.items():
            path = self.data / name / arrow_file(self.number)
            if not path.is_file() or Shard.of(path) != shard:
                return False
        for name, shard in checkpoint.shards.items():
            self._split(name).take_over(self.number, shard)
        self.number += 1
        self._begin()
        return True

    def start(self) -> None:
        """Remove what was not taken over."""
        for path in self._checkpoints.iterdir():  # first, so that none is left without its shards
            if not path.stem.isdecimal() or int(path.stem) >= self.number:
                path.unlink()
        for path in self.data.iterdir():
            if path.name not in self._splits:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for split in self._splits.values():
            split.remove_others()

    def add(self, record: Record, image: bytes, source_bytes: int, image_checksum: bytes) -> None:
        """Append a row to the record's split. image_checksum: of the source of its image."""
        self._split(record.split).add(record, image)
        self._count(record)
        self.pending.image_checksums += image_checksum.hex()
        self.pending.source_bytes += source_bytes
        self.pending.image_bytes += len(image)

    def skip(self, record: Record, reason: str) -> None:
        """Enter a record that is left out."""
        self._count(record)
        self.pending.skipped.append(Skipped(record.image_id, record.split, reason))

    def checkpoint(self) -> None:
        """End the open shards, and enter what they hold."""
        self.pending.checksum = self._records_checksum.hexdigest()
        for name, split in self._splits.items():
            shard = split.end_shard()
            if shard is not None:
                self.pending.shards[name] = shard
        write_text(_checkpoint_file(self._checkpoints, self.number), json.dumps(asdict(self.pending)))
        self.number += 1
        self._begin()

    def finish(
        self,
        source: dict[str, Any],
        size: int,
        skipped: list[Skipped],
        captions_left_out: list[CaptionLeftOut],
        duplicates: list[Duplicate],
    ) -> Manifest:
        """End the open shards and write what describes them all."""
        names = split_order(list(self._splits))
        splits = {name: self._splits[name].finish(name) for name in names}
        (self.data / DATASET_DICT).write_text(json.dumps({"splits": names}))
        manifest = Manifest(source, size, splits, skipped, captions_left_out, duplicates, __version__)
        (self.data / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    def _begin(self) -> None:
        self.pending = Checkpoint(self._settings)
        self._records_checksum = hashlib.sha256()
        for split in self._splits.values():
            split.number = self.number

    def _split(self, name: str) -> "_SplitWriter":
        if name not in self._splits:
            self._splits[name] = _SplitWriter(self.data / name, self._features)
            self._splits[name].number = self.number
        return self._splits[name]

    def _count(self, record: Record) -> None:
        self.pending.records += 1
        self._records_checksum.update(_describe(record))


def records_checksum(records: list[Record]) -> str:
    """A checksum of what some records are made from: it changes with their fields and when an image's file changes."""
    checksum = hashlib.sha256()
    for record in records:
        checksum.update(_describe(record))
    return checksum.hexdigest()


def _describe(record: Record) -> bytes:
    if isinstance(record.image, bytes):
        image = short_checksum(record.image).hex()
    else:
        try:
            status = record.image.stat()
            image = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):
            image = "missing"
    fields = [record.image_id, record.label, record.split, record.captions, record.tokens, image]
    fields += [record.caption_ids] if record.caption_ids is not None else []
    return json.dumps(fields).encode()


class _SplitWriter:
    """The shards of one split, and what is known of the rows in them."""

    def __init__(self, directory: Path, features: "Features") -> None:
        self.directory = directory
        self.features = features
        self.schema = features.arrow_schema
        self.number = 0  # of the open shard, and of the checkpoint that it will belong to
        self._shards: dict[int, Shard] = {}
        self._rows: list[dict[str, Any]] = []  # of the open shard, not yet written
        self._row_bytes = 0
        self._file: pa.NativeFile | None = None
        self._stream: Any = None
        self._checksum = hashlib.sha256()  # of all rows
        self._images = self._captions = 0
        directory.mkdir(exist_ok=True)

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
        self._enter(row)
        self._rows.append(row)
        self._row_bytes += len(image) + sum(map(len, record.captions))
        if len(self._rows) == BATCH_ROWS or self._row_bytes >= BATCH_BYTES:
            self._write_rows()

    def end_shard(self) -> Shard | None:
        """The open shard, now whole; None where no row came."""
        if self._rows:
            self._write_rows()
        if self._stream is None or self._file is None:
            return None
        self._stream.close()
        self._file.close()
        self._stream = self._file = None
        self._shards[self.number] = Shard.of(self._path(self.number))
        return self._shards[self.number]

    def take_over(self, number: int, shard: Shard) -> None:
        with pa.memory_map(str(self._path(number))) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                for row in batch.to_pylist():
                    self._enter(row)
        self._shards[number] = shard

    def remove_others(self) -> None:
        """Remove what is in the directory besides the shards that were taken over."""
        kept = {self._path(number) for number in self._shards}
        for path in self.directory.iterdir():
            if path not in kept:
                path.unlink()

    def finish(self, name: str) -> SplitFacts:
        from datasets import DatasetInfo

        self.end_shard()
        checksum = self._checksum.hexdigest()
        DatasetInfo(features=self.features).write_to_directory(str(self.directory))
        state: dict[str, Any] = {
            "_data_files": [{"filename": arrow_file(number)} for number in self._shards],
            "_fingerprint": checksum[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        (self.directory / STATE).write_text(json.dumps(state, indent=2))
        size = sum(shard.bytes for shard in self._shards.values())
        return SplitFacts(self._images, self._captions, self._distinct_labels(), size, checksum)

    def abandon(self) -> None:
        """Close the open shard, which stays half-written."""
        if self._file is not None:
            with suppress(OSError):  # there is an error already
                self._file.close()

    def _enter(self, row: dict[str, Any]) -> None:
        """Count a row, and take it into the checksum."""
        image = row["image"]["bytes"]
        described = [row["image_id"], row["label"], row["captions"], row.get("tokens"), len(image)]
        described += [row["caption_ids"]] if "caption_ids" in row else []
        self._checksum.update(json.dumps(described).encode())
        self._checksum.update(image)
        self._images += 1
        self._captions += len(row["captions"])

    def _write_rows(self) -> None:
        if self._stream is None:
            self._file = pa.OSFile(str(self._path(self.number)), "wb")
            self._stream = pa.ipc.new_stream(self._file, self.schema)
        self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self.schema))
        self._rows, self._row_bytes = [], 0

    def _path(self, number: int) -> Path:
        return self.directory / arrow_file(number)

    def _distinct_labels(self) -> int:
        """The number of labels of the split, from its files: a set of them would grow with the records by much more."""
        labels, end = np.empty(self._images, np.int64), 0
        for number in self._shards:
            with pa.memory_map(str(self._path(number))) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    start, end = end, end + len(batch)
                    labels[start:end] = batch.column("label")
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
