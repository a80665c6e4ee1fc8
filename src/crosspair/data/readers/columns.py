"""Rows of named columns, as tables and Hugging Face data sets have them, gathered to a record per picture."""

import json
import re
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from crosspair.data.readers.schema import SchemaError, keys_of, kind_of, path_inside
from crosspair.data.records import Record, printable
from crosspair.data.scratch import pack, scratch_database, unpack

IMAGE_COLUMNS = ("image", "image", "file_name")
CAPTION_COLUMNS = ("caption", "captions", "text")
_WHOLE_NUMBER = re.compile("-?[0-9]{1,18}")  # fits 64 bits
_SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the pictures and the captions; None: one of the usual names."""

    image: str | None = None
    caption: str | None = None

    def find(self, present: Iterable[str]) -> "tuple[str, str]":
        """The two columns among those `present`. Raises SchemaError."""
        names = list(present)
        return (
            _find(self.image, IMAGE_COLUMNS, "image", names),
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


class ImageTable(Sized, Iterable[Record]):
    """Gathers rows on disk: those that name the same picture become one record with all their captions.

    Records come in the order in which their pictures came first. label: the numbers of the column `label`, or the
    places of its names in alphabetical order, or where there is none the place of the picture.
    """

    def __init__(self, columns: Columns, present: Iterable[str], images: Path) -> None:
        """present: the names of all columns. images: where the pictures lie. Raises SchemaError when one is missing."""
        names = list(present)
        self.images = images
        self.image_column, self.caption_column = columns.find(names)
        self.optional = {name: name in names for name in ("label", "split", "image_id")}
        self._database = scratch_database(
            "pictures(number INTEGER PRIMARY KEY, path BLOB UNIQUE, label BLOB, split BLOB, image_id BLOB, row TEXT)",
            "rows(picture INTEGER, captions BLOB)",  # one caption as bytes, any other number as JSON
            "labels(name BLOB PRIMARY KEY, number INTEGER)",
        )
        self._last: tuple[str, int, _Fields] = ("", 0, ("", "", ""))
        self._is_grouped = True  # the rows of each picture lie next to each other

    def add(self, row: dict[str, Any], where: str) -> None:
        """Enter one row; `where` names it. Raises SchemaError."""
        name = row.get(self.image_column)
        if not isinstance(name, str):
            raise SchemaError(f"{where} has {kind_of(name)} as '{self.image_column}', not a path")
        path = name if name and name == self._last[0] else path_inside(name, where, self.image_column)
        for column, expected in self.optional.items():
            if (column in row) != expected:
                raise SchemaError(f"'{column}' is in some rows only ({where} differs); give every row one, or none")
        fields = (
            _text(row, "label", where) if "label" in row else "",
            split_name(_text(row, "split", where)) if "split" in row else "",
            _text(row, "image_id", where) if "image_id" in row else path,
        )
        captions = captions_of(row.get(self.caption_column), where, self.caption_column)
        if (path, fields) != (self._last[0], self._last[2]):
            self._last = (path, self._number(path, fields, where), fields)
        packed = pack(captions[0]) if len(captions) == 1 else json.dumps(captions)
        self._database.execute("INSERT INTO rows VALUES (?, ?)", (self._last[1], packed))

    def _number(self, path: str, fields: "_Fields", where: str) -> int:
        """The number of a picture, entered if it is new."""
        cells = [pack(path), *map(pack, fields), where]
        entered = self._database.execute("INSERT OR IGNORE INTO pictures VALUES (NULL, ?, ?, ?, ?, ?)", cells)
        if entered.rowcount == 1:
            return int(entered.lastrowid or 0)
        self._is_grouped = False
        query = "SELECT number, label, split, image_id, row FROM pictures WHERE path = ?"
        ((number, *packed, row),) = self._database.execute(query, (pack(path),))
        for name, first, second in zip(("label", "split", "image_id"), map(unpack, packed), fields, strict=True):
            if first != second:
                raise SchemaError(
                    f"{where} gives {path[:200]!r} the {name} {second[:80]!r}, {row} gave it {first[:80]!r}"
                )
        return int(number)

    def __len__(self) -> int:
        ((count,),) = self._database.execute("SELECT count(*) FROM pictures")
        return int(count)

    def has(self, path: str) -> bool:
        """Whether a picture is in the table."""
        query = "SELECT 1 FROM pictures WHERE path = ?"
        return self._database.execute(query, (pack(path),)).fetchone() is not None

    def __iter__(self) -> Iterator[Record]:
        self._number_labels()
        images = self._database.execute(
            "SELECT path, labels.number, split, image_id FROM pictures "
            "LEFT JOIN labels ON labels.name = pictures.label ORDER BY pictures.number"
        )
        order = "rowid" if self._is_grouped else "picture, rowid"
        rows = groupby(self._database.execute(f"SELECT picture, captions FROM rows ORDER BY {order}"), itemgetter(0))
        for place, ((path, label, split, image_id), (_, group)) in enumerate(zip(images, rows, strict=True)):
            captions = tuple(caption for _, packed in group for caption in _unpacked(packed))
            image = self.images / unpack(path)
            yield Record(unpack(image_id), image, place if label is None else label, captions, unpack(split))

    def _number_labels(self) -> None:
        """Fill the table `labels`, unless there are none."""
        if not self.optional["label"]:
            return
        names = (unpack(name) for (name,) in self._database.execute("SELECT DISTINCT label FROM pictures"))
        are_numbers = all(_WHOLE_NUMBER.fullmatch(name) for name in names)
        query = "SELECT DISTINCT label FROM pictures ORDER BY label"  # by code points, as Python sorts
        for place, (name,) in enumerate(self._database.execute(query)):
            number = int(name) if are_numbers else place
            self._database.execute("INSERT OR REPLACE INTO labels VALUES (?, ?)", (name, number))


_Fields = tuple[str, str, str]  # label, split, image_id


def _unpacked(captions: bytes | str) -> list[str]:
    return [unpack(captions)] if isinstance(captions, bytes) else json.loads(captions)


def captions_of(value: object, where: str, column: str) -> list[str]:
    """A caption, a list of them, or none. An empty cell is an empty caption, which preparing reports."""
    values: list[Any] = value if isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, str | None):
            raise SchemaError(f"{where} has {kind_of(one)} as '{column}', not a caption or a list of captions")
    return [one or "" for one in values]


def number_labels(labels: Iterable[str]) -> dict[str, int]:
    """Labels as numbers: whole numbers stay, names count up in alphabetical order."""
    names = sorted(set(labels))
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        return {name: int(name) for name in names}
    return {name: place for place, name in enumerate(names)}


def _text(row: dict[str, Any], column: str, where: str) -> str:
    """A cell as text: of a number that a table without it would hold as 3.0, "3"."""
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, list | dict | float) or not str(value).strip():
        found = kind_of(value) if value not in (None, "") else "nothing"
        raise SchemaError(f"{where} has {found} as '{column}'; fill the column in every row or leave it out")
    return str(value).strip()
