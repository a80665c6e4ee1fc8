"""Your own table: CSV, TSV, JSON lines or Parquet with a column `image` and a column `caption`.

    image,caption,label,split
    a.jpg,A dog runs.,dog,train
    a.jpg,A brown dog on grass.,dog,train

An image has a row per caption, or one row with a list of captions. Optional columns: `label` (numbers or names; equal
means match), `split`, `image_id`.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from crosspair.data.readers.schema import (
    WHOLE_NUMBER,
    SchemaError,
    captions_of,
    find_columns,
    kind_of,
    path_inside,
    require_folder,
    split_name,
    unreadable,
)
from crosspair.data.records import Record
from crosspair.data.scratch import pack, scratch_database, unpack
from crosspair.errors import UserError
from crosspair.registry import register_reader

_FIX = "expected a .csv, .tsv, .jsonl or .parquet file with the columns image and caption"


@register_reader("table")
def read_table(
    annotations: Path, images: Path, *, image_column: str | None = None, caption_column: str | None = None
) -> "ImageTable":
    """Your own table (.csv, .tsv, .jsonl, .parquet) with the columns image and caption.

    Gives a record per image, in the order in which the table first names them.

    label: the column of that name, else every image has its own. split: "" without such a column. image_id: that
    column, else the image's path below `images`. Raises UserError, before the first record, that names the row.
    """
    require_folder(images)
    with table_errors(annotations):
        return gather(table_rows(annotations), images, image_column, caption_column)


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Turn errors in the tables of `path` into one sentence."""
    try:
        yield
    except SchemaError as problem:
        raise UserError(f"{path} can't be used: {problem}; {_FIX}") from None
    except OSError as error:
        raise unreadable(path, error, _FIX) from error
    except (UnicodeDecodeError, csv.Error, RecursionError) as error:
        raise UserError(f"{path} can't be read ({error}); {_FIX}, as UTF-8") from error


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each with what names it."""
    rows = _ROWS.get(path.suffix.lower())
    if rows is None:
        raise SchemaError("it is no table this can read")
    yield from rows(path)


def gather(
    rows: Iterator[tuple[str, dict[str, Any]]],
    images: Path,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> "ImageTable":
    """All rows, each with what names it, entered in one table. images: where the images lie. Raises SchemaError."""
    table: ImageTable | None = None
    for where, row in rows:
        table = ImageTable(row, images, image_column, caption_column) if table is None else table
        table.add(row, where)
    if table is None:
        raise SchemaError("it has no rows")
    return table


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # Python's own, 128 kB, would refuse a long caption
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(file.readline())
        file.seek(0)
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(lines, [])]
        if len(set(header)) < len(header):
            raise SchemaError("two of its columns have the same name")
        for cells in lines:
            if not cells:
                continue
            where = f"the row that ends in line {lines.line_num}"
            if len(cells) != len(header):
                raise SchemaError(
                    f"{where} has {len(cells)} fields, the header {len(header)} (quote a caption that holds a comma)"
                )
            yield where, dict(zip(header, cells, strict=True))


def _delimiter(header: str) -> str:
    """Spreadsheets write semicolons where the comma is the decimal point."""
    return ";" if ";" in header and "," not in header else ","


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SchemaError(f"line {number} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise SchemaError(f"line {number} is {kind_of(row)}, not an object")
            yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SchemaError(f"it is not Parquet, or damaged ({' '.join(str(error).split())[:200]})") from None


_ROWS = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}


class ImageTable(Sized, Iterable[Record]):
    """Gathers rows on disk: those that name the same image become one record with all their captions.

    Records come in the order in which their images came first. label: the numbers of the column `label`, or the
    places of its names in alphabetical order, or where there is none the place of the image.
    """

    def __init__(
        self, present: Iterable[str], images: Path, image_column: str | None, caption_column: str | None
    ) -> None:
        """present: the names of all columns. images: where the images lie. Raises SchemaError when one is missing."""
        names = list(present)
        self.images = images
        self.image_column, self.caption_column = find_columns(names, image_column, caption_column)
        self.optional = {name: name in names for name in ("label", "split", "image_id")}
        self._database = scratch_database(
            "images(number INTEGER PRIMARY KEY, path BLOB UNIQUE, label BLOB, split BLOB, image_id BLOB, row TEXT)",
            "rows(image INTEGER, captions BLOB)",  # one caption as bytes, any other number as JSON
            "labels(name BLOB PRIMARY KEY, number INTEGER)",
        )
        self._last: tuple[str, int, _Fields] = ("", 0, ("", "", ""))
        self._is_grouped = True  # the rows of each image lie next to each other

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
        """The number of an image, entered if it is new."""
        cells = [pack(path), *map(pack, fields), where]
        entered = self._database.execute("INSERT OR IGNORE INTO images VALUES (NULL, ?, ?, ?, ?, ?)", cells)
        if entered.rowcount == 1:
            return int(entered.lastrowid or 0)
        self._is_grouped = False
        query = "SELECT number, label, split, image_id, row FROM images WHERE path = ?"
        ((number, *packed, row),) = self._database.execute(query, (pack(path),))
        for name, first, second in zip(("label", "split", "image_id"), map(unpack, packed), fields, strict=True):
            if first != second:
                raise SchemaError(
                    f"{where} gives {path[:200]!r} the {name} {second[:80]!r}, {row} gave it {first[:80]!r}"
                )
        return int(number)

    def __len__(self) -> int:
        ((count,),) = self._database.execute("SELECT count(*) FROM images")
        return int(count)

    def has(self, path: str) -> bool:
        """Whether an image is in the table."""
        query = "SELECT 1 FROM images WHERE path = ?"
        return self._database.execute(query, (pack(path),)).fetchone() is not None

    def __iter__(self) -> Iterator[Record]:
        self._number_labels()
        images = self._database.execute(
            "SELECT path, labels.number, split, image_id FROM images "
            "LEFT JOIN labels ON labels.name = images.label ORDER BY images.number"
        )
        order = "rowid" if self._is_grouped else "image, rowid"
        rows = groupby(self._database.execute(f"SELECT image, captions FROM rows ORDER BY {order}"), itemgetter(0))
        for place, ((path, label, split, image_id), (_, group)) in enumerate(zip(images, rows, strict=True)):
            captions = tuple(caption for _, packed in group for caption in _unpacked(packed))
            image = self.images / unpack(path)
            yield Record(unpack(image_id), image, place if label is None else label, captions, unpack(split))

    def _number_labels(self) -> None:
        """Fill the table `labels`, unless there are none."""
        if not self.optional["label"]:
            return
        names = (unpack(name) for (name,) in self._database.execute("SELECT DISTINCT label FROM images"))
        are_numbers = all(WHOLE_NUMBER.fullmatch(name) for name in names)
        query = "SELECT DISTINCT label FROM images ORDER BY label"  # by code points, as Python sorts
        for place, (name,) in enumerate(self._database.execute(query)):
            number = int(name) if are_numbers else place
            self._database.execute("INSERT OR REPLACE INTO labels VALUES (?, ?)", (name, number))


_Fields = tuple[str, str, str]  # label, split, image_id


def _unpacked(captions: bytes | str) -> list[str]:
    return [unpack(captions)] if isinstance(captions, bytes) else json.loads(captions)


def _text(row: dict[str, Any], column: str, where: str) -> str:
    """A cell as text: of a number that a table without it would hold as 3.0, "3"."""
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, list | dict | float) or not str(value).strip():
        found = kind_of(value) if value not in (None, "") else "nothing"
        raise SchemaError(f"{where} has {found} as '{column}'; fill the column in every row or leave it out")
    return str(value).strip()
