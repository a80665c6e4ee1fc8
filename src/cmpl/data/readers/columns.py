"""Rows of named columns, as tables and Hugging Face data sets have them, gathered to a record per picture."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmpl.data.readers.schema import SchemaError, keys_of, kind_of, path_inside
from cmpl.data.records import Record, printable

PICTURE_COLUMNS = ("picture", "image", "file_name")
CAPTION_COLUMNS = ("caption", "captions", "text")
_WHOLE_NUMBER = re.compile("-?[0-9]+")
_SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the pictures and the captions; None: one of the usual names."""

    picture: str | None = None
    caption: str | None = None

    def find(self, present: Iterable[str]) -> "tuple[str, str]":
        """The two columns among those `present`. Raises SchemaError."""
        names = list(present)
        return (
            _find(self.picture, PICTURE_COLUMNS, "picture", names),
            _find(self.caption, CAPTION_COLUMNS, "caption", names),
        )


def _find(wanted: str | None, usual: tuple[str, ...], kind: str, present: list[str]) -> str:
    found = [name for name in ((wanted,) if wanted else usual) if name in present]
    if not found:
        missing = f"'{printable(wanted)}'" if wanted else f"'{usual[0]}'"
        raise SchemaError(f"it has no column {missing} (found {keys_of(present)}); name it with --{kind}-column")
    return found[0]


def split_name(value: str) -> str:
    """A split's name as this project writes it: lower case, "validation" as "val"."""
    name = value.strip().lower()
    return _SPLIT_NAMES.get(name, name)


@dataclass
class _Picture:
    where: str
    label: str | None
    split: str
    image_id: str
    captions: list[str] = field(default_factory=list)


class PictureTable:
    """Gathers rows: those that name the same picture become one record with all their captions."""

    def __init__(self, columns: Columns, present: Iterable[str]) -> None:
        """present: the names of all columns. Raises SchemaError when one that is needed is missing."""
        names = list(present)
        self.picture_column, self.caption_column = columns.find(names)
        self.optional = {name: name in names for name in ("label", "split", "image_id")}
        self._pictures: dict[str, _Picture] = {}

    def add(self, row: dict[str, Any], where: str) -> None:
        """Enter one row; `where` names it. Raises SchemaError."""
        name = row.get(self.picture_column)
        if not isinstance(name, str):
            raise SchemaError(f"{where} has {kind_of(name)} as '{self.picture_column}', not a path")
        path = path_inside(name, where, self.picture_column)
        for column, expected in self.optional.items():
            if (column in row) != expected:
                raise SchemaError(f"'{column}' is in some rows only ({where} differs); give every row one, or none")
        fields = _Picture(
            where,
            _text(row, "label", where) if "label" in row else None,
            split_name(_text(row, "split", where)) if "split" in row else "",
            _text(row, "image_id", where) if "image_id" in row else path,
        )
        picture = self._pictures.setdefault(path, fields)
        for name in self.optional:
            first, second = getattr(picture, name), getattr(fields, name)
            if first != second:
                raise SchemaError(f"{where} gives {path!r} the {name} {second!r}, {picture.where} gave it {first!r}")
        picture.captions += captions_of(row.get(self.caption_column), where, self.caption_column)

    def records(self, images: Path) -> list[Record]:
        """A record per picture, in the order in which they came first."""
        labels = number_labels([picture.label for picture in self._pictures.values()])
        return [
            Record(picture.image_id, images / path, label, tuple(picture.captions), picture.split)
            for (path, picture), label in zip(self._pictures.items(), labels, strict=True)
        ]


def captions_of(value: object, where: str, column: str) -> list[str]:
    """A caption, a list of them, or none. An empty cell is an empty caption, which preparing reports."""
    values: list[Any] = value if isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, str | None):
            raise SchemaError(f"{where} has {kind_of(one)} as '{column}', not a caption or a list of captions")
    return [one or "" for one in values]


def number_labels(labels: list[str | None]) -> list[int]:
    """Labels as numbers: whole numbers stay, names count up in alphabetical order, and without any each is its own."""
    if all(label is None for label in labels):
        return list(range(len(labels)))
    names = sorted({label for label in labels if label is not None})
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        number = {name: int(name) for name in names}
    else:
        number = {name: place for place, name in enumerate(names)}
    return [number[label] for label in labels if label is not None]


def _text(row: dict[str, Any], column: str, where: str) -> str:
    """A cell as text: of a number that a table without it would hold as 3.0, "3"."""
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, list | dict | float) or not str(value).strip():
        found = kind_of(value) if value not in (None, "") else "nothing"
        raise SchemaError(f"{where} has {found} as '{column}'; fill the column in every row or leave it out")
    return str(value).strip()
