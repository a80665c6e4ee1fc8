"""What every reader yields: one picture with its captions."""

import re
from dataclasses import dataclass
from pathlib import Path

_WORD = re.compile(r"\w")
_SURROGATE = re.compile("[\ud800-\udfff]")


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
        which = f"number {number} of {len(record.captions)}"
        if not _WORD.search(caption):
            return f"has an empty caption ({which}: {caption[:20]!r})"
        if not is_unicode(caption):
            return f"has a caption that is not Unicode ({which}: {caption[:20]!a})"
    if not all(is_unicode(word) for words in record.tokens or () for word in words):
        return "has tokens that are not Unicode"
    return None


def is_unicode(text: str) -> bool:
    """Whether a text can be stored: JSON can hold halves of characters, which no file can."""
    return not _SURROGATE.search(text)


def printable(name: str) -> str:
    """A name as it fits a sentence: quoted and escaped when it holds a newline or half a character."""
    return name if name.isprintable() else ascii(name)
