"""Sources of a gallery's images: a folder, searched to its depths, or the splits of a DATA directory."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from crosspair.data.dataset import open_data
from crosspair.data.images import ImageError, read_source
from crosspair.data.readers.folder import SUFFIXES
from crosspair.data.records import printable
from crosspair.errors import UserError
from crosspair.gallery.layout import Skipped
from crosspair.storage.directories import kind_of
from crosspair.storage.files import leads_out

# How images begin, whatever their files are called: JPEG, PNG, GIF, BMP, TIFF, WebP, AVIF.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_MIDDLES = (b"WEBP", b"ftypavif")


class NoImageError(Exception):
    """A file that neither claims to be an image nor begins as one."""


@dataclass(frozen=True)
class Entry:
    """An image before it is read. read: its encoded bytes; raises ImageError, NoImageError."""

    item_id: str
    read: Callable[[], bytes]
    path: str | None = None
    split: str | None = None
    data_row: int | None = None
    label: int | None = None
    captions: list[str] | None = None


@dataclass(frozen=True)
class Source:
    """Entries that may become items, in the order of the gallery's rows."""

    path: Path
    kind: str  # folder or data
    entries: list[Entry]
    splits: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)  # what is not even tried


def open_source(path: Path, splits: list[str] | None = None) -> Source:
    """A folder of images or a DATA directory; `splits` of the latter, by default all. Raises UserError."""
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {found}; expected a folder of pictures or a DATA directory")
    kind = kind_of(path)
    if kind == "DATA":
        return _open_data(path, splits)
    if splits:
        raise UserError(f"{path} is a folder of pictures, which has no splits; leave --split out")
    if kind in ("RUN", "GALLERY"):
        raise UserError(f"{path} is a {kind}; expected a folder of pictures or a DATA directory")
    return _list_folder(path)


def _open_data(path: Path, splits: list[str] | None) -> Source:
    data = open_data(path)
    entries = []
    for name in splits or data.split_names:
        split = data.split(name)
        rows = zip(split.image_ids, split.labels.tolist(), split.captions, strict=True)
        for row, (item_id, label, captions) in enumerate(rows):
            entries.append(Entry(item_id, partial(split.image, row), None, name, row, label, captions))
    return Source(path, "data", entries, splits or data.split_names)


def _list_folder(root: Path) -> Source:
    """The files below a folder in the order of their paths; hidden ones, links to folders and galleries left out."""
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    for folder, folders, files in os.walk(root):
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        searched = []
        for name in sorted(folders):
            if name.startswith("."):
                continue
            reason = _no_folder_to_search(Path(folder) / name, root)
            if reason:
                skipped.append(Skipped(printable(str(inside / name)), reason))
            else:
                searched.append(name)
        folders[:] = searched
        for name in files:
            if not name.startswith("."):
                entries.append(folder_entry(root, str(inside / name)))
    return Source(root, "folder", sorted(entries, key=lambda entry: entry.item_id), skipped=skipped)


def folder_entry(root: Path, item_id: str) -> Entry:
    """The entry of a file in a folder of images, by its path in it."""
    return Entry(item_id, partial(_read_file, root / item_id, root), item_id)


def _no_folder_to_search(path: Path, root: Path) -> str | None:
    if path.is_symlink():
        if leads_out(path, root):
            return "is a link that leads out of the folder of pictures"
        return "is a link to a folder; pictures in it are taken where they lie"
    if kind_of(path) == "GALLERY":
        return "is a gallery"
    return None


def _read_file(path: Path, root: Path) -> bytes:
    if not _is_unicode(str(path)):
        raise ImageError(str(path), "has a name that is not Unicode")
    if path.suffix.lower() not in SUFFIXES and not _begins_as_image(path, root):
        raise NoImageError
    return read_source(path, root)


def _begins_as_image(path: Path, root: Path) -> bool:
    if not path.is_file() or leads_out(path, root):
        return False
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_BEGINNINGS) or any(middle in start for middle in _MIDDLES)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
