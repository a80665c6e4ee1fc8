"""TFRecord files: records framed by their length and masked CRC-32C checksums, and the SequenceExamples in them.

Everything here raises ValueError for bytes that are damaged or of another kind, in words that follow "the record is".
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from crosspair.formats import protobuf
from crosspair.formats.crc32c import masked_crc32c

_HEADER, _CHECKSUM = 12, 4  # bytes: length and its checksum before each record, the record's checksum behind it


def read_record(file: BinaryIO, position: int) -> memoryview:
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


@dataclass(frozen=True)
class SequenceExample:
    """Named features of a record, and named lists of features, each an encoded Feature."""

    context: dict[str, memoryview]
    lists: dict[str, memoryview]

    @classmethod
    def parse(cls, record: memoryview) -> "SequenceExample":
        return cls(_entries(record, 1), _entries(record, 2))

    def data(self, name: str) -> memoryview:
        """The one bytes value of a feature of the context."""
        return _only(_bytes_values(_get(self.context, name)))

    def text(self, name: str) -> str:
        """The one bytes value of a feature of the context, as UTF-8."""
        return bytes(self.data(name)).decode()

    def integers(self, name: str) -> list[int]:
        """The integers of a feature of the context."""
        feature = _get(self.context, name)
        return [value for values in protobuf.messages(feature, 3) for value in protobuf.integers(values, 1)]

    def texts(self, name: str) -> tuple[str, ...]:
        """The features of a list, each one bytes value, as UTF-8."""
        features = protobuf.messages(_get(self.lists, name), 1)
        return tuple(bytes(_only(_bytes_values(feature))).decode() for feature in features)


def _entries(record: memoryview, field: int) -> dict[str, memoryview]:
    """The entries of a map from names to messages."""
    entries = (entry for features in protobuf.messages(record, field) for entry in protobuf.messages(features, 1))
    return {protobuf.text(entry, 1): _only(protobuf.messages(entry, 2)) for entry in entries}


def _get(features: dict[str, memoryview], name: str) -> memoryview:
    if name not in features:
        raise ValueError(f"it has no {name}")
    return features[name]


def _bytes_values(feature: memoryview) -> list[memoryview]:
    return [value for values in protobuf.messages(feature, 1) for value in protobuf.messages(values, 1)]


def _only(values: Iterable[memoryview]) -> memoryview:
    found = list(values)
    if len(found) != 1:
        raise ValueError(f"a field has {len(found)} values where one is expected")
    return found[0]
