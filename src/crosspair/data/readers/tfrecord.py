"""Directories that the original's converters wrote: TFRecord shards of one record a caption, and their vocabulary.

Each record is a SequenceExample with the picture's JPEG bytes, label, file name and split, and one caption's words;
a picture with five captions stands in five records, in a shuffled order. Here it comes once, with all its captions.
"""

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from crosspair.data.records import Record
from crosspair.data.scratch import pack, scratch_database, unpack
from crosspair.errors import UserError
from crosspair.formats import protobuf
from crosspair.formats.crc32c import masked_crc32c

_SPLITS = ("train", "val", "test")
_SHARD = re.compile(r"(train|val|test)-(\d{5})-of-(\d{5})")
# CUHK-PEDES by the folders of its pictures: its identities begin at 1, and the converter stored them as they are.
_CUHK_PEDES = re.compile(r"(.*/)?(CUHK01|CUHK03|Market|cam_a|cam_b|test_query|train_query)/[^/]+")
_CUHK_PEDES_FIRST_ID = 1
_HEADER, _CHECKSUM = 12, 4  # bytes: length and its checksum before each record, the record's checksum behind it


@dataclass(frozen=True)
class _Caption:
    """What one record tells: a picture, and one of its captions."""

    split: str
    name: str
    label: int
    words: tuple[str, ...]
    image: memoryview  # encoded


def read_tfrecords(annotations: Path, images: Path | None = None) -> Iterator[Record]:
    """The pictures of a directory of shards, by split, label and name; captions in the order of their records.

    annotations: the directory with `train-00000-of-00256` and so on. images is not used, the records hold the pictures.
    A Record's image_id is the stored path without the directory that all paths share; <START> and <END> are left out.
    Its label is the stored one, for CUHK-PEDES the identity less one as the data set's own reader gives it.
    All shards are checked before the first record; where each caption is, is kept on disk.
    Raises UserError for a missing shard, a damaged record (naming file and byte) and records that contradict another.
    """
    shards = _shards(annotations)
    places = scratch_database(
        "pictures(split INTEGER, name BLOB, label INTEGER, PRIMARY KEY (split, name)) WITHOUT ROWID",
        "captions(split INTEGER, label INTEGER, name BLOB, shard INTEGER, position INTEGER)",
    )
    for number, shard in enumerate(shards):
        for position, caption in _captions(shard):
            row = (_SPLITS.index(caption.split), caption.label, pack(caption.name), number, position)
            with _damage(shard, position):
                _enter(places, caption, row)
    shared = _shared_directory(_names(places))
    first_label = _CUHK_PEDES_FIRST_ID if all(map(_CUHK_PEDES.fullmatch, _names(places))) else 0
    rows = places.execute("SELECT * FROM captions ORDER BY split, label, name, rowid")
    for (split, label, name), group in groupby(rows, key=itemgetter(0, 1, 2)):
        captions = [_caption_at(shards[shard], position) for *_, shard, position in group]
        tokens = tuple(caption.words for caption in captions)
        texts = tuple(" ".join(words) for words in tokens)
        image = bytes(captions[0].image)
        yield Record(unpack(name)[len(shared) :], image, label - first_label, texts, _SPLITS[split], tokens)


def _names(places: sqlite3.Connection) -> Iterator[str]:
    return (unpack(name) for (name,) in places.execute("SELECT name FROM pictures"))


def _enter(places: sqlite3.Connection, caption: _Caption, row: tuple[int, int, bytes, int, int]) -> None:
    """Enter where a caption is. Raises ValueError when its label is not that of the picture's earlier records."""
    split, label, name, *_ = row
    if places.execute("INSERT OR IGNORE INTO pictures VALUES (?, ?, ?)", (split, name, label)).rowcount == 0:
        query = "SELECT label FROM pictures WHERE split = ? AND name = ?"
        ((first,),) = places.execute(query, (split, name))
        if first != label:
            raise ValueError(f"{caption.name} has label {label} here and {first} in an earlier record")
    places.execute("INSERT INTO captions VALUES (?, ?, ?, ?, ?)", row)


@contextmanager
def _damage(shard: Path, position: int) -> Iterator[None]:
    """A ValueError as a sentence that names the record."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"{shard}: the record at byte {position} is damaged ({error}); expected a shard of the original's "
            "converter, copy it again"
        ) from error


def _captions(shard: Path) -> Iterator[tuple[int, _Caption]]:
    """Every record of a shard, with the byte it begins at."""
    end = shard.stat().st_size
    with shard.open("rb") as file:
        while (position := file.tell()) < end:
            with _damage(shard, position):
                caption = _parse(_read_record(file, position))
            yield position, caption


def _caption_at(shard: Path, position: int) -> _Caption:
    with _damage(shard, position), shard.open("rb") as file:
        return _parse(_read_record(file, position))


def _shards(directory: Path) -> list[Path]:
    """All shards in order, after checking that none is missing."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; expected the one that holds train-00000-of-... and so on")
    found = [match for path in sorted(directory.iterdir()) if (match := _SHARD.fullmatch(path.name))]
    if not found:
        raise UserError(f"no shards in {directory}; expected files named like train-00000-of-00256")
    shards = []
    for split in _SPLITS:
        counts = {int(match[3]) for match in found if match[1] == split}
        if len(counts) > 1:
            raise UserError(f"{directory} holds {split} shards of {sorted(counts)} in all; expected those of one run")
        for count in counts:
            names = [f"{split}-{number:05d}-of-{count:05d}" for number in range(count)]
            missing = [name for name in names if not (directory / name).is_file()]
            if missing:
                raise UserError(
                    f"{len(missing)} of {count} {split} shards are missing in {directory}, first {missing[0]}; copy "
                    "the directory again"
                )
            shards += [directory / name for name in names]
    return shards


def _read_record(file: BinaryIO, position: int) -> memoryview:
    """The record framed at `position`, checksums verified. The file is then behind it."""
    file.seek(position)
    header = file.read(_HEADER)
    if len(header) < _HEADER or masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
        raise ValueError("its length is not readable")
    length = int.from_bytes(header[:8], "little")
    if position + _HEADER + length + _CHECKSUM > os.fstat(file.fileno()).st_size:
        raise ValueError("it runs past the end of the file")
    record, checksum = file.read(length), file.read(_CHECKSUM)
    if masked_crc32c(record) != int.from_bytes(checksum, "little"):
        raise ValueError("its checksum is wrong")
    return memoryview(record)


def _parse(record: memoryview) -> _Caption:
    """A SequenceExample."""
    context = dict(
        _entry(entry) for features in protobuf.messages(record, 1) for entry in protobuf.messages(features, 1)
    )
    lists = dict(_entry(entry) for features in protobuf.messages(record, 2) for entry in protobuf.messages(features, 1))
    name, split = _text(context, "image/filename"), _text(context, "image/split")
    if split not in _SPLITS:
        raise ValueError(f"its split is {split[:40]!r}")
    labels = [
        value for values in protobuf.messages(_get(context, "image/label"), 3) for value in protobuf.integers(values, 1)
    ]
    if len(labels) != 1:
        raise ValueError(f"it has {len(labels)} labels where one is expected")
    words = tuple(
        bytes(_only(_bytes_values(feature))).decode() for feature in protobuf.messages(_get(lists, "image/caption"), 1)
    )
    image = _only(_bytes_values(_get(context, "image/data")))
    return _Caption(split, name, labels[0], tuple(word for word in words if word not in ("<START>", "<END>")), image)


def _entry(entry: memoryview) -> tuple[str, memoryview]:
    """Key and value of a map's entry."""
    return protobuf.text(entry, 1), _only(list(protobuf.messages(entry, 2)))


def _get(features: dict[str, memoryview], name: str) -> memoryview:
    if name not in features:
        raise ValueError(f"it has no {name}")
    return features[name]


def _bytes_values(feature: memoryview) -> list[memoryview]:
    return [value for values in protobuf.messages(feature, 1) for value in protobuf.messages(values, 1)]


def _only(values: list[memoryview]) -> memoryview:
    if len(values) != 1:
        raise ValueError(f"a field has {len(values)} values where one is expected")
    return values[0]


def _text(features: dict[str, memoryview], name: str) -> str:
    return bytes(_only(_bytes_values(_get(features, name)))).decode()


def _shared_directory(names: Iterable[str]) -> str:
    """The directories, with the last slash, that all paths begin with; often the one the converter was given."""
    shared: list[str] | None = None
    for name in names:
        directories = name.split("/")[:-1]
        pairs = zip(directories if shared is None else shared, directories, strict=False)
        shared = [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return "/".join([*(shared or []), ""])
