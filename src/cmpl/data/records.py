"""What every reader yields: one picture with its captions."""

import re
from dataclasses import dataclass
from pathlib import Path

_WORD = re.compile(r"\w")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Record:
    """A picture of the source, before it is read.

    image_id: unique in the data set. picture: a file, or its encoded bytes. label: fits int64; equal means match.
    tokens: the words of each caption where the annotation has them; then every record of the source has them.
    """

    image_id: str
    picture: Path | bytes
    label: int
    captions: tuple[str, ...]
    split: str
    tokens: tuple[tuple[str, ...], ...] | None = None


def caption_problem(record: Record) -> str | None:
    """Why the captions of a record can't be used, or None. A caption needs a letter or a digit."""
    if not record.captions:
        return "has no caption"
    for number, caption in enumerate(record.captions, start=1):
        if not _WORD.search(caption):
            return f"has an empty caption (number {number} of {len(record.captions)}: {caption!r:.40})"
        if any("\ud800" <= character <= "\udfff" for character in caption):
            return f"has a caption that is not Unicode (number {number} of {len(record.captions)})"
    return None


def label_fits(label: int) -> bool:
    """Whether a label can be stored."""
    return label in _INT64
