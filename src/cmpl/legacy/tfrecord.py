"""Directories that the original's converters wrote: TFRecord shards of one record a caption, and their vocabulary.

Each record is a SequenceExample with the picture's JPEG bytes, label, file name and split, and one caption's words;
a picture with five captions stands in five records, in a shuffled order. Here it comes once, with all its captions.
"""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from cmpl.data.records import Record
from cmpl.errors import UserError
from cmpl.legacy import protobuf
from cmpl.legacy.crc32c import masked_crc32c

_SPLITS = ("train", "val", "test")
_SHARD = re.compile(r"(train|val|test)-(\d{5})-of-(\d{5})")
_HEADER, _CHECKSUM = 12, 4  # bytes: length and its checksum before each record, the record's checksum behind it


@dataclass
class _Picture:
    """One picture as its records tell of it; its bytes stay in the shard until they are wanted."""

    data: memoryview
    label: int
    captions: list[tuple[str, ...]] = field(default_factory=list)


def read_tfrecords(annotations: Path, images: Path | None = None) -> Iterator[Record]:
    """The pictures of a directory of shards, by split, label and name; captions in the order of their records.

    annotations: the directory with `train-00000-of-00256` and so on. images is not used, the records hold the pictures.
    A Record's image_id is the stored path without the directory that all paths share; <START> and <END> are left out.
    Raises UserError for a missing shard, a damaged record (naming file and byte) and records that contradict another.
    """
    pictures: dict[tuple[str, str], _Picture] = {}
    for shard in _shards(annotations):
        position = 0
        data = _map(shard)
        while position < len(data):
            try:
                record, behind = _read_record(data, position)
                _add(pictures, record)
            except ValueError as error:
                raise UserError(
                    f"{shard}: the record at byte {position} is damaged ({error}); expected a shard of the original's "
                    "converter, copy it again"
                ) from error
            position = behind
    shared = _shared_directory([name for _, name in pictures])
    order = sorted(pictures, key=lambda key: (_SPLITS.index(key[0]), pictures[key].label, key[1]))
    for split, name in order:
        picture = pictures[split, name]
        yield Record(
            image_id=name[len(shared) :],
            picture=bytes(picture.data),
            label=picture.label,
            captions=tuple(" ".join(words) for words in picture.captions),
            split=split,
            tokens=tuple(picture.captions),
        )


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


def _map(path: Path) -> memoryview:
    if path.stat().st_size == 0:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read_record(data: memoryview, position: int) -> tuple[memoryview, int]:
    """The record framed at `position`, checksums verified, and the position behind it."""
    header = data[position : position + _HEADER]
    if len(header) < _HEADER or masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
        raise ValueError("its length is not readable")
    end = position + _HEADER + int.from_bytes(header[:8], "little")
    record, checksum = data[position + _HEADER : end], data[end : end + _CHECKSUM]
    if len(checksum) < _CHECKSUM:
        raise ValueError("it runs past the end of the file")
    if masked_crc32c(record) != int.from_bytes(checksum, "little"):
        raise ValueError("its checksum is wrong")
    return record, end + _CHECKSUM


def _add(pictures: dict[tuple[str, str], _Picture], record: memoryview) -> None:
    """Enter one SequenceExample: its picture if new, and its caption."""
    context = dict(
        _entry(entry) for features in protobuf.messages(record, 1) for entry in protobuf.messages(features, 1)
    )
    lists = dict(_entry(entry) for features in protobuf.messages(record, 2) for entry in protobuf.messages(features, 1))
    name, split = _text(context, "image/filename"), _text(context, "image/split")
    if split not in _SPLITS:
        raise ValueError(f"its split is '{split}'")
    (label,) = [
        value for values in protobuf.messages(_get(context, "image/label"), 3) for value in protobuf.integers(values, 1)
    ]
    words = tuple(
        bytes(_only(_bytes_values(feature))).decode() for feature in protobuf.messages(_get(lists, "image/caption"), 1)
    )
    picture = pictures.get((split, name))
    if picture is None:
        content = _only(_bytes_values(_get(context, "image/data")))
        picture = pictures[split, name] = _Picture(content, label)
    if picture.label != label:
        raise ValueError(f"{name} has label {label} here and {picture.label} in an earlier record")
    picture.captions.append(tuple(word for word in words if word not in ("<START>", "<END>")))


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


def _shared_directory(names: list[str]) -> str:
    """The directories, with the last slash, that all paths begin with; often the one the converter was given."""
    directories = [name.split("/")[:-1] for name in names]
    if not directories:
        return ""
    # What the first and the last in sorted order share, all between them share.
    pairs = zip(min(directories), max(directories), strict=False)
    shared = [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return "/".join([*shared, ""])
