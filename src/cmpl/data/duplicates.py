"""Pictures that come twice where they should not: the same bytes under two labels, or in two splits."""

import hashlib

from cmpl.data.layout import Duplicate
from cmpl.data.records import Record

_DIGEST_BYTES = 16  # of a picture; two of 10 million share them with a chance below 1e-24


def digest(data: bytes) -> bytes:
    """What stands for a picture's bytes: a few of their checksum's, so that memory is bounded by the pictures."""
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES]


class DuplicateFinder:
    """Meets every picture once and remembers where it first saw its bytes."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, str, int]] = {}
        self.found: list[Duplicate] = []

    def add(self, record: Record, picture_digest: bytes) -> None:
        """Enter a picture; one seen before under another label or in another split is added to `found`."""
        here = (record.image_id, record.split, record.label)
        first = self._first.setdefault(picture_digest, here)
        if first[1:] != here[1:]:
            self.found.append(Duplicate(*here, *first))
