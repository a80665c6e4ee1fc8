"""Records: an image of a source with its captions, and checks of what can be stored."""

import re
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class BadCaption:
    """A caption that can't be used. number: its place among the image's captions, from 1."""

    number: int
    reason: str


def without_bad_captions(record: Record) -> tuple[Record, list[BadCaption]]:
    """The record with the captions that can be used, and the others, each with the reason.

    A caption needs a letter or a digit. A record none of whose captions can be used stays as it is.
    """
    bad = _bad_captions(record)
    numbers = {one.number for one in bad}
    kept = [place for place in range(len(record.captions)) if place + 1 not in numbers]
    if not bad or not kept:
        return record, []
    return replace(
        record,
        captions=tuple(record.captions[place] for place in kept),
        tokens=record.tokens and tuple(record.tokens[place] for place in kept),
        caption_ids=record.caption_ids and tuple(record.caption_ids[place] for place in kept),
    ), bad


def caption_problem(record: Record) -> str | None:
    """Why the captions of a record, taken together, can't be used, or None: there is none, or they are too long."""
    if not record.captions:
        return "has no caption"
    bad = _bad_captions(record)
    if len(bad) == len(record.captions):
        return f"has no caption that can be used (number 1 of {len(bad)} {bad[0].reason})"
    characters = sum(_characters(record, place) for place in range(len(record.captions)))
    if characters > _MAX_CHARACTERS:
        return f"has captions of {characters:,} characters; at most {_MAX_CHARACTERS:,} are stored for a picture"
    return None


def _bad_captions(record: Record) -> list[BadCaption]:
    reasons = (_caption_reason(record, place) for place in range(len(record.captions)))
    return [BadCaption(number, reason) for number, reason in enumerate(reasons, start=1) if reason]


def _caption_reason(record: Record, place: int) -> str | None:
    """Why one caption can't be used, or None."""
    caption = record.captions[place]
    if not _WORD.search(caption):
        return f"is empty: {caption[:20]!r}"
    if not is_unicode(caption):
        return f"is not Unicode: {caption[:20]!a}"
    if record.tokens is not None and not all(map(is_unicode, record.tokens[place])):
        return "has tokens that are not Unicode"
    characters = _characters(record, place)
    if characters > _MAX_CHARACTERS:
        return f"has {characters:,} characters; at most {_MAX_CHARACTERS:,} are stored for a picture"
    return None


def _characters(record: Record, place: int) -> int:
    """The characters of a caption and of its tokens."""
    words = record.tokens[place] if record.tokens is not None else ()
    return len(record.captions[place]) + sum(len(word) + 1 for word in words)


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
    if not all(isinstance(caption, str) for caption in record.captions):
        raise UserError(f"the reader gave captions of {printable(record.image_id)} that are not strings")
    for name in ("tokens", "caption_ids"):
        values = getattr(record, name)
        if values is not None and len(values) != len(record.captions):
            raise UserError(
                f"the reader gave {printable(record.image_id)} {len(values)} {name} and {len(record.captions)} "
                "captions; expected as many of both"
            )
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
