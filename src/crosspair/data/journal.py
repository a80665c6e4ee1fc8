"""Going on after a run that was killed: a journal beside the half-written files says which part of them is whole.

Its first line holds the settings that the stored bytes depend on. Then comes a line per chunk of records: how many they
are, a stamp of what they were made from, where each split's file ended behind them, and what is known of them besides.
A line is written when the bytes it speaks of are, so whatever else a file holds belongs to no whole chunk.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from crosspair.data.duplicates import DIGEST_BYTES, digest
from crosspair.data.layout import Skipped
from crosspair.data.records import Record


@dataclass(frozen=True)
class Place:
    """Where a split's file ended, and the CRC-32 of what it held."""

    bytes: int
    crc: int


@dataclass
class Chunk:
    """What the journal tells of some successive records."""

    records: int = 0
    stamp: str = ""
    ends: dict[str, Place] = field(default_factory=dict)  # of each split that has rows, behind this chunk
    digests: str = ""  # of the stored pictures' sources, in hexadecimal
    skipped: list[Skipped] = field(default_factory=list)
    source_bytes: int = 0
    image_bytes: int = 0

    def each_digest(self) -> list[bytes]:
        data = bytes.fromhex(self.digests)
        return [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]

    @classmethod
    def parse(cls, line: bytes) -> "Chunk":
        """Raises ValueError or TypeError for a line that is damaged or cut off."""
        fields = json.loads(line)
        ends = {split: Place(**place) for split, place in fields.pop("ends").items()}
        skipped = [Skipped(**one) for one in fields.pop("skipped")]
        return cls(ends=ends, skipped=skipped, **fields)


class Journal:
    """The journal of a work folder, opened to be read from its start and then continued from where reading stopped."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        self._end = 0  # of what was read and taken over
        self._header = json.dumps({"settings": settings}).encode() + b"\n"
        self.resumable = self._file.readline() == self._header

    def chunks(self) -> Iterator[Chunk]:
        """The chunks of the earlier run in their order. Asking for the next takes over the one before."""
        if not self.resumable:
            return
        self._end = self._file.tell()
        for chunk in _parse(self._file):
            behind = self._file.tell()
            yield chunk
            self._end = behind

    def start(self) -> None:
        """Leave out what was not taken over; from here on chunks are added."""
        self._file.seek(self._end)
        self._file.truncate()
        if not self._end:
            self._file.write(self._header)

    def add(self, chunk: Chunk) -> None:
        """Enter a chunk whose rows are in the files."""
        self._file.write(json.dumps(asdict(chunk)).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def converted_images(path: Path) -> int:
    """How many pictures the journal at `path` knows to be stored; 0 without one."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.readline()
        return sum(chunk.records - len(chunk.skipped) for chunk in _parse(file))


def _parse(file: BinaryIO) -> Iterator[Chunk]:
    """The chunks from here on, up to a line that was cut off."""
    while line := file.readline():
        try:
            chunk = Chunk.parse(line)
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        yield chunk


def stamp(records: list[Record]) -> str:
    """A checksum of what some records are made from: it changes with their fields and when a picture's file changes."""
    checksum = hashlib.sha256()
    for record in records:
        if isinstance(record.image, bytes):
            image = digest(record.image).hex()
        else:
            try:
                status = record.image.stat()
                image = f"{status.st_size} {status.st_mtime_ns}"
            except (OSError, ValueError):
                image = "missing"
        fields = [record.image_id, record.label, record.split, record.captions, record.tokens, image]
        fields += [record.caption_ids] if record.caption_ids is not None else []
        checksum.update(json.dumps(fields).encode())
    return checksum.hexdigest()
