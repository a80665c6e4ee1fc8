"""Rows to Arrow files that `datasets.load_from_disk` opens, one file per split, a few megabytes in memory at a time."""

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import cmpl
from cmpl.data.layout import ARROW_FILE, DATASET_DICT, MANIFEST, Duplicate, Manifest, Skipped, SplitFacts, split_order
from cmpl.data.records import Record

if TYPE_CHECKING:
    from datasets import Features

BATCH_BYTES = 8 << 20
BATCH_ROWS = 256


class DataWriter:
    """Writes the splits of a data set below `directory`; `finish` makes it one that can be opened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._splits: dict[str, _SplitWriter] = {}
        self._features: Features | None = None

    def __enter__(self) -> "DataWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for writer in self._splits.values():
            writer.close()

    def add(self, record: Record, picture: bytes) -> None:
        """Append a row to the record's split."""
        if self._features is None:
            self._features = _features(with_tokens=record.tokens is not None)
        if record.split not in self._splits:
            self._splits[record.split] = _SplitWriter(self.directory / record.split, self._features)
        self._splits[record.split].add(record, picture)

    def finish(
        self, source: dict[str, Any], size: int, skipped: list[Skipped], duplicates: list[Duplicate]
    ) -> Manifest:
        """Close the files and write what describes them."""
        names = split_order(list(self._splits))
        splits = {name: self._splits[name].finish(name) for name in names}
        (self.directory / DATASET_DICT).write_text(json.dumps({"splits": names}))
        manifest = Manifest(source, size, splits, skipped, duplicates, cmpl.__version__)
        (self.directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return manifest


class _SplitWriter:
    def __init__(self, directory: Path, features: "Features") -> None:
        directory.mkdir()
        self.directory = directory
        self.features = features
        self.schema = features.arrow_schema
        self.file = (directory / ARROW_FILE).open("wb")
        self.stream = pa.ipc.new_stream(self.file, self.schema)
        self.rows: list[dict[str, Any]] = []
        self.waiting_bytes = 0
        self.checksum = hashlib.sha256()
        self.labels: set[int] = set()
        self.pictures = self.captions = 0

    def add(self, record: Record, picture: bytes) -> None:
        row: dict[str, Any] = {
            "image": {"bytes": picture, "path": None},
            "image_id": record.image_id,
            "label": record.label,
            "captions": list(record.captions),
        }
        if ("tokens" in self.features) != (record.tokens is not None):
            raise ValueError(f"{record.image_id}: either every record of a source has tokens, or none")
        if record.tokens is not None:
            row["tokens"] = [list(words) for words in record.tokens]
        described = json.dumps([row["image_id"], row["label"], row["captions"], row.get("tokens"), len(picture)])
        self.checksum.update(described.encode())
        self.checksum.update(picture)
        self.labels.add(record.label)
        self.pictures += 1
        self.captions += len(record.captions)
        self.rows.append(row)
        self.waiting_bytes += len(picture)
        if self.waiting_bytes >= BATCH_BYTES or len(self.rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.stream.write_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
        self.rows = []
        self.waiting_bytes = 0

    def finish(self, name: str) -> SplitFacts:
        from datasets import DatasetInfo

        self._flush()
        self.stream.close()
        self.file.close()
        checksum = self.checksum.hexdigest()
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
        size = (self.directory / ARROW_FILE).stat().st_size
        return SplitFacts(self.pictures, self.captions, len(self.labels), size, checksum)

    def close(self) -> None:
        self.file.close()


def _features(with_tokens: bool) -> "Features":
    from datasets import Features, Image, List, Value

    columns: dict[str, Any] = {
        "image": Image(),
        "image_id": Value("string"),
        "label": Value("int64"),
        "captions": List(Value("string")),
    }
    if with_tokens:
        columns["tokens"] = List(List(Value("string")))
    return Features(**columns)
