"""Records: an image of a source with its captions, and checks of what can be stored."""

import re
from dataclasses import dataclass
from pathlib import Path

from crosspair.errors import UserError

_WORD = re.compile(r"\w")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_CHARACTERS = 10_000_000  # of all captions of an image, tokens counted too


@dataclass(frozen=True)
class Record:
    """An image of the source, before it is read.

    image_id: unique in the data set. image: a file, or its encoded bytes. label: fits int64; equal means match.
    tokens: the words of each caption where the annotation has them; then every record of the source has them.
    caption_ids: COCO's own number of each caption, likewise; they fit int64.
    """

    image_id: str
    image: Path | bytes
    label: int
    captions: tuple[str, ...]
    split: str
    tokens: tuple[tuple[str, ...], ...] | None = None
    caption_ids: tuple[int, ...] | None = None


def caption_problem(record: Record) -> str | None:
    """Why the captions of a record can't be used, or None. A caption needs a letter or a digit."""
    if not record.captions:
        return "has no caption"
    characters = sum(map(len, record.captions)) + sum(len(word) + 1 for words in record.tokens or () for word in words)
    if characters > _MAX_CHARACTERS:
        return f"has captions of {characters:,} characters; at most {_MAX_CHARACTERS:,} are stored for a picture"
    for number, caption in enumerate(record.captions, start=1):
        which = f"number {number} of {len(record.captions)}"
        if not _WORD.search(caption):
            return f"has an empty caption ({which}: {caption[:20]!r})"
        if not is_unicode(caption):
            return f"has a caption that is not Unicode ({which}: {caption[:20]!a})"
    if not all(is_unicode(word) for words in record.tokens or () for word in words):
        return "has tokens that are not Unicode"
    return None


def check_record(record: Record) -> None:
    """Raises UserError for what is no record, for a field of another type, and for a label that can't be stored.

    Readers can be users' own. A caption alone instead of several would be taken for captions of one letter each.
    """
    if not isinstance(record, Record):
        raise UserError(f"the reader gave {type(record).__name__}; expected a crosspair.Record for each image")
    for name, kinds in _KINDS.items():
        value = getattr(record, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"the reader gave a record whose {name} is {type(value).__name__}; expected {expected}")
    if not -(2**63) <= record.label < 2**63:
        found = str(record.label) if abs(record.label) < 10**30 else "of very many digits"
        raise UserError(f"{printable(record.image_id)} has label {found}; expected a number of at most 64 bits")


_KINDS: dict[str, tuple[type, ...]] = {
    "image_id": (str,),
    "image": (Path, bytes),
    "label": (int,),
    "captions": (tuple, list),
    "split": (str,),
}


def is_unicode(text: str) -> bool:
    """Whether a text can be stored: JSON can hold halves of characters, which no file can."""
    return not _SURROGATE.search(text)


def printable(name: str) -> str:
    """A name as it fits a sentence: quoted and escaped when it holds a newline or half a character."""
    return name if name.isprintable() else ascii(name)
