"""Temporary SQLite database for tables that grow with the number of records and may not fit into memory.

A database keeps to a few megabytes of memory, goes to a file when it needs more, and vanishes with its process.
"""

import hashlib
import sqlite3

from crosspair.data.layout import Duplicate
from crosspair.data.records import Record

CHECKSUM_BYTES = 16  # of an image; two of 10 million share them with a chance below 1e-24
_CACHE_KILOBYTES = 32 << 10


def scratch_database(*tables: str) -> sqlite3.Connection:
    """A database with the given tables, each in the words of CREATE TABLE: "labels(name BLOB, number INTEGER)"."""
    database = sqlite3.connect("")  # SQLite removes the file's name as soon as it has opened it
    for setting in (f"cache_size = -{_CACHE_KILOBYTES}", "journal_mode = OFF", "synchronous = OFF"):
        database.execute(f"PRAGMA {setting}")
    for table in tables:
        database.execute(f"CREATE TABLE {table}")
    return database


def pack(text: str) -> bytes:
    """A text as it is stored: halves of characters, which JSON can hold and SQLite can't, come back as they were."""
    return text.encode("utf-8", "surrogatepass")


def unpack(data: bytes) -> str:
    """The text of `pack`."""
    return data.decode("utf-8", "surrogatepass")


def short_checksum(data: bytes) -> bytes:
    """The first bytes of a SHA-256."""
    return hashlib.sha256(data).digest()[:CHECKSUM_BYTES]


class SeenNames:
    """A set of names on disk, to find those that come twice."""

    def __init__(self) -> None:
        self._names = scratch_database("names(checksum BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, name: str) -> bool:
        """Enter a name; whether it is new."""
        key = short_checksum(pack(name))
        return self._names.execute("INSERT OR IGNORE INTO names VALUES (?)", (key,)).rowcount == 1


class DuplicateFinder:
    """Finds images whose bytes come again under another label or in another split."""

    def __init__(self) -> None:
        self._first = scratch_database(
            "first(checksum BLOB PRIMARY KEY, image_id TEXT, split TEXT, label INTEGER) WITHOUT ROWID"
        )
        self.found: list[Duplicate] = []

    def add(self, record: Record, image_checksum: bytes) -> None:
        """Enter an image; one seen before under another label or in another split is added to `found`."""
        here = (record.image_id, record.split, record.label)
        row = (image_checksum, *here)
        if self._first.execute("INSERT OR IGNORE INTO first VALUES (?, ?, ?, ?)", row).rowcount == 1:
            return
        query = "SELECT image_id, split, label FROM first WHERE checksum = ?"
        (first,) = self._first.execute(query, (image_checksum,))
        if first[1:] != here[1:]:
            self.found.append(Duplicate(*here, *first))
