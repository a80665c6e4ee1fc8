"""A Hugging Face data set: saved to disk, a Parquet file of one, or by its name on the hub."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.data.readers.schema import (
    SchemaError,
    captions_of,
    find_columns,
    kind_of,
    number_labels,
    path_inside,
    split_name,
    tokens_of,
)
from crosspair.data.records import Record
from crosspair.errors import UserError
from crosspair.registry import register_reader

if TYPE_CHECKING:
    from datasets import Dataset

_FIX = "expected a folder that save_to_disk wrote, a .parquet file, or a name on the hub such as user/name"


@register_reader("huggingface")
def read_huggingface(
    annotations: Path,
    images: Path | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Iterator[Record]:
    """A Hugging Face data set: saved to disk, a .parquet file, or its name on the hub.

    Gives a record per row, in the order of the splits and their rows, read as they are needed. Besides images and
    captions a row may have `label` (numbers or names), `image_id` and `tokens` (the words of each caption). A data set
    whose only split is `train` counts as one without splits. images: the folder of the images, for a column that holds
    their paths; default: the one that the data set lies in. Raises UserError.
    """
    import pyarrow as pa

    splits = _open(annotations)
    only_train = set(splits) == {"train"}
    folder = annotations if images is None else images
    try:
        for rows in splits.values():
            rows.data.validate(full=True)  # reading a table with damaged offsets can end the process
        label = _labels(splits)
        with_tokens = [name for name, rows in splits.items() if "tokens" in rows.column_names]
        if with_tokens and len(with_tokens) < len(splits):
            raise SchemaError(
                f"'tokens' is a column of {', '.join(with_tokens)} only; give it to every split, or to none"
            )
        for name, rows in splits.items():
            split = "" if only_train else split_name(name)
            yield from _records(
                rows, name, split, folder, find_columns(rows.column_names, image_column, caption_column), label
            )
    except SchemaError as problem:
        raise UserError(f"{annotations} can't be used: {problem}; {_FIX}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(annotations, error) from error


def _open(annotations: Path) -> "dict[str, Dataset]":
    """The splits of a data set, by name."""
    import datasets

    try:
        if annotations.suffix == ".parquet":
            found: Any = datasets.load_dataset("parquet", data_files=str(annotations))
        elif annotations.is_dir():
            found = datasets.load_from_disk(str(annotations))
        else:
            found = datasets.load_dataset(str(annotations))
    except Exception as error:  # of a damaged folder the library raises whatever it stumbles over
        raise _damaged(annotations, error) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _damaged(annotations: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{annotations} can't be opened as a data set ({reason}); {_FIX}")


def _records(
    rows: "Dataset",
    name: str,
    split: str,
    images: Path,
    columns: tuple[str, str],
    label: Callable[[dict[str, Any], str], int],
) -> Iterator[Record]:
    from datasets import Image

    image_column, caption_column = columns
    if isinstance(rows.features[image_column], Image):
        rows = rows.cast_column(image_column, Image(decode=False))
    for number, row in enumerate(rows):
        where = f"row {number} of {name}"
        image_id = str(row.get("image_id", f"{name}/{number}"))
        captions = captions_of(row[caption_column], where, caption_column)
        image = image_of(row[image_column], images, where, image_column)
        tokens = tokens_of(row["tokens"], where, len(captions)) if "tokens" in row else None
        yield Record(image_id, image, label(row, where), tuple(captions), split, tokens)


def _labels(splits: "dict[str, Dataset]") -> Callable[[dict[str, Any], str], int]:
    """What gives a row, named by its second argument, its label: a name in several splits is one label."""
    import pyarrow as pa

    with_labels = [name for name, rows in splits.items() if "label" in rows.column_names]
    if not with_labels:
        places = count()
        return lambda row, where: next(places)
    if len(with_labels) < len(splits):
        raise SchemaError(f"'label' is a column of {', '.join(with_labels)} only; give it to every split, or to none")
    kinds = [rows.data.schema.field("label").type for rows in splits.values()]
    if all(pa.types.is_integer(kind) for kind in kinds):
        return _whole_number
    if not all(
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds
    ):
        raise SchemaError("it has labels that are neither numbers nor names")
    numbers = number_labels(str(value) for rows in splits.values() for value in rows.unique("label"))
    return lambda row, where: numbers[str(row["label"])]


def _whole_number(row: dict[str, Any], where: str) -> int:
    if row["label"] is None:
        raise SchemaError(f"{where} has no label; give one to every row")
    return int(row["label"])


def image_of(value: object, images: Path, where: str, column: str) -> Path | bytes:
    """An image as the library stores it: its bytes or the path of its file; or a path inside `images`."""
    if isinstance(value, dict) and (value.get("bytes") or value.get("path")):
        data: bytes | None = value.get("bytes")
        return data or Path(value["path"])
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return images / path_inside(value, where, column)
    raise SchemaError(f"{where} has {kind_of(value)} as '{column}', not a picture")
