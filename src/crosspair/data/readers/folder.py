"""A folder of images: each with its captions in a text file of the same name, or all in metadata files.

images/dog.jpg  images/dog.txt                              a caption a line
images/metadata.csv: file_name,text                         as Hugging Face's imagefolder; metadata.jsonl too
images/train/dog.jpg  images/val/cat.jpg                    folders named as splits are splits
"""

import os
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from crosspair.data.readers.schema import require_folder, split_name
from crosspair.data.readers.table import ImageTable, gather, table_errors, table_rows
from crosspair.data.records import Record, printable
from crosspair.errors import UserError
from crosspair.registry import register_reader
from crosspair.storage.files import leads_out

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SPLITS = {"train", "val", "test"}


@register_reader("folder")
def read_folder(images: Path) -> Iterable[Record]:
    """A folder of images, each with its captions in a text file of the same name, or all in metadata.csv.

    Gives a record per image in `images` and the folders in it, in order of name; image_id: its path inside. Every image
    has a label of its own unless metadata have a column `label`. An image without captions becomes a record without
    captions, so that preparing reports it. Raises UserError.
    """
    require_folder(images)
    names, metadata = _list(images)
    if not names:
        raise UserError(f"{images} holds no pictures; expected files that end in {', '.join(sorted(SUFFIXES))}")
    return _from_metadata(images, names, metadata) if metadata else _TextFiles(images, names)


def _list(images: Path) -> tuple[list[str], list[str]]:
    """The images and the metadata files below a folder, hidden ones left out, in order of name.

    Raises UserError when a folder has two metadata files.
    """
    names: list[str] = []
    metadata: list[str] = []
    for folder, folders, files in os.walk(images):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = PurePosixPath(Path(folder).relative_to(images).as_posix())
        names += [str(inside / name) for name in files if _is_image(name)]
        found = [name for name in METADATA if name in files]
        if len(found) > 1:
            raise UserError(f"{folder} has {' and '.join(found)}; keep one of them")
        metadata += [str(inside / name) for name in found]
    return sorted(names), sorted(metadata)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES


class _TextFiles(Sized, Iterable[Record]):
    """A record per image, its captions read when it is needed."""

    def __init__(self, images: Path, names: list[str]) -> None:
        self.images = images
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Record]:
        has_splits = {_split(name) for name in self.names} <= _SPLITS
        for number, name in enumerate(self.names):
            path = self.images / name
            split = _split(name) if has_splits else ""
            yield Record(name, path, number, _captions(path, self.images), split)


def _split(name: str) -> str:
    """The split that an image's first folder names."""
    return split_name(PurePosixPath(name).parts[0])


def _captions(image: Path, images: Path) -> tuple[str, ...]:
    path = image.with_suffix(".txt")
    if leads_out(path, images):
        raise UserError(f"{printable(str(path))} is a link that leads out of {images}; put the file itself there")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error.reason} at byte {error.start}"
        raise UserError(f"{printable(str(path))} can't be read ({reason}); expected captions in UTF-8") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _from_metadata(images: Path, names: list[str], files: list[str]) -> Iterable[Record]:
    """Records by the metadata files, each about its own folder, and the images that none of them names."""
    with table_errors(images):
        rows = (row for file in files for row in _metadata_rows(images, PurePosixPath(file)))
        table = gather(rows, images, "file_name")
    return _WithUnnamed(images, table, [name for name in names if not table.has(name)])


@dataclass(frozen=True)
class _WithUnnamed(Sized, Iterable[Record]):
    """The records of a table, then those of images it doesn't name: without captions, each a label of its own."""

    images: Path
    table: ImageTable
    unnamed: list[str]

    def __len__(self) -> int:
        return len(self.table) + len(self.unnamed)

    def __iter__(self) -> Iterator[Record]:
        last, split = -1, ""
        for record in self.table:
            last = max(last, record.label)
            split = record.split and "train"  # where there are splits they are reported under the first one
            yield record
        for label, name in enumerate(self.unnamed, last + 1):
            yield Record(name, self.images / name, label, (), split)


def _metadata_rows(images: Path, file: PurePosixPath) -> Iterator[tuple[str, dict[str, Any]]]:
    folder = file.parent
    split = split_name(folder.parts[0]) if folder.parts else ""
    for where, row in table_rows(images / file):
        if split in _SPLITS:
            row.setdefault("split", split)
        if isinstance(row.get("file_name"), str):
            row["file_name"] = str(folder / row["file_name"])
        yield f"{where} of {file}", row
