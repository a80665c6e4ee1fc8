"""A folder of pictures: each with its captions in a text file of the same name, or all in metadata files.

images/dog.jpg  images/dog.txt                              a caption a line
images/metadata.csv: file_name,text                         as Hugging Face's imagefolder; metadata.jsonl too
images/train/dog.jpg  images/val/cat.jpg                    folders named as splits are splits
"""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from cmpl.data.readers.columns import Columns, split_name
from cmpl.data.readers.schema import require_folder
from cmpl.data.readers.table import gather, table_errors, table_rows
from cmpl.data.records import Record, printable
from cmpl.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SPLITS = {"train", "val", "test"}


def read_folder(annotations: Path, images: Path) -> Iterator[Record]:
    """A record per picture in `images` and the folders in it, in order of name; image_id: its path inside.

    Every picture has a label of its own unless metadata have a column `label`. A picture without captions becomes a
    record without captions, so that preparing reports it. `annotations` is not used. Raises UserError.
    """
    require_folder(images)
    pictures, metadata = _list(images)
    if not pictures:
        raise UserError(f"{images} holds no pictures; expected files that end in {', '.join(sorted(SUFFIXES))}")
    records = _from_metadata(images, pictures, metadata) if metadata else _from_text_files(images, pictures)
    return iter(records)


def _list(images: Path) -> tuple[list[str], list[str]]:
    """The pictures and the metadata files below a folder, hidden ones left out, in order of name.

    Raises UserError when a folder has two metadata files.
    """
    pictures: list[str] = []
    metadata: list[str] = []
    for folder, folders, files in os.walk(images):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = PurePosixPath(Path(folder).relative_to(images).as_posix())
        pictures += [str(inside / name) for name in files if _is_picture(name)]
        found = [name for name in METADATA if name in files]
        if len(found) > 1:
            raise UserError(f"{folder} has {' and '.join(found)}; keep one of them")
        metadata += [str(inside / name) for name in found]
    return sorted(pictures), sorted(metadata)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES


def _from_text_files(images: Path, pictures: list[str]) -> list[Record]:
    splits = _folder_splits(pictures)
    return [
        Record(name, images / name, number, _captions(images / name), splits[number])
        for number, name in enumerate(pictures)
    ]


def _folder_splits(pictures: list[str]) -> list[str]:
    """The split of each picture when all lie in folders named as splits, else "" for all."""
    splits = [split_name(PurePosixPath(name).parts[0]) for name in pictures]
    return splits if set(splits) <= _SPLITS else [""] * len(pictures)


def _captions(picture: Path) -> tuple[str, ...]:
    path = picture.with_suffix(".txt")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{printable(str(path))} can't be read ({error}); expected captions in UTF-8") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _from_metadata(images: Path, pictures: list[str], files: list[str]) -> list[Record]:
    """What the metadata say, each file about its own folder, and the pictures that none of them names."""
    with table_errors(images):
        rows = (row for file in files for row in _metadata_rows(images, PurePosixPath(file)))
        records = gather(rows, Columns(picture="file_name")).records(images)
    named = {record.picture for record in records}
    unnamed = [name for name in pictures if images / name not in named]
    labels = count(max((record.label for record in records), default=-1) + 1)
    split = records[0].split and "train"  # where there are splits they are reported under the first one
    return records + [Record(name, images / name, next(labels), (), split) for name in unnamed]


def _metadata_rows(images: Path, file: PurePosixPath) -> Iterator[tuple[str, dict[str, Any]]]:
    folder = file.parent
    split = split_name(folder.parts[0]) if folder.parts else ""
    for where, row in table_rows(images / file):
        if split in _SPLITS:
            row.setdefault("split", split)
        if isinstance(row.get("file_name"), str):
            row["file_name"] = str(folder / row["file_name"])
        yield f"{where} of {file}", row
