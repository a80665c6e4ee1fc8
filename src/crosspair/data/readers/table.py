"""Your own table: CSV, TSV, JSON lines or Parquet with a column `image` and a column `caption`.

    picture,caption,label,split
    a.jpg,A dog runs.,dog,train
    a.jpg,A brown dog on grass.,dog,train

A picture has a row per caption, or one row with a list of captions. Optional columns: `label` (numbers or names; equal
means match), `split`, `image_id`.
"""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crosspair.data.readers.columns import Columns, ImageTable
from crosspair.data.readers.schema import SchemaError, kind_of, require_folder, unreadable
from crosspair.errors import UserError

_FIX = "expected a .csv, .tsv, .jsonl or .parquet file with the columns picture and caption"


def read_table(annotations: Path, images: Path, columns: Columns | None = None) -> ImageTable:
    """A record per picture, in the order in which the table first names them.

    label: the column of that name, else every picture has its own. split: "" without such a column. image_id: that
    column, else the picture's path below `images`. Raises UserError, before the first record, that names the row.
    """
    require_folder(images)
    with table_errors(annotations):
        return gather(table_rows(annotations), columns or Columns(), images)


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """What goes wrong with the tables in `path` as one sentence."""
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


def gather(rows: Iterator[tuple[str, dict[str, Any]]], columns: Columns, images: Path) -> ImageTable:
    """All rows, each with what names it, entered in one table. images: where the pictures lie. Raises SchemaError."""
    table: ImageTable | None = None
    for where, row in rows:
        table = ImageTable(columns, row, images) if table is None else table
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
