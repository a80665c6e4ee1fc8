"""Pictures that come twice where they should not: names, or bytes under two labels or in two splits."""

import hashlib

from crosspair.data.layout import Duplicate
from crosspair.data.records import Record
from crosspair.data.scratch import scratch_database

DIGEST_BYTES = 16  # of a picture; two of 10 million share them with a chance below 1e-24


def digest(data: bytes) -> bytes:
    """What stands for a picture's bytes: a few of their checksum's."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


class SeenNames:
    """Tells of a name whether it came before."""

    def __init__(self) -> None:
        self._names = scratch_database("names(digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, name: str) -> bool:
        """Enter a name; whether it is new."""
        key = digest(name.encode("utf-8", "surrogatepass"))
        return self._names.execute("INSERT OR IGNORE INTO names VALUES (?)", (key,)).rowcount == 1


class DuplicateFinder:
    """Meets every picture once and remembers where it first saw its bytes."""

    def __init__(self) -> None:
        self._first = scratch_database(
            "first(digest BLOB PRIMARY KEY, image_id TEXT, split TEXT, label INTEGER) WITHOUT ROWID"
        )
        self.found: list[Duplicate] = []

    def add(self, record: Record, image_digest: bytes) -> None:
        """Enter a picture; one seen before under another label or in another split is added to `found`."""
        here = (record.image_id, record.split, record.label)
        row = (image_digest, *here)
        if self._first.execute("INSERT OR IGNORE INTO first VALUES (?, ?, ?, ?)", row).rowcount == 1:
            return
        query = "SELECT image_id, split, label FROM first WHERE digest = ?"
        (first,) = self._first.execute(query, (image_digest,))
        if first[1:] != here[1:]:
            self.found.append(Duplicate(*here, *first))
