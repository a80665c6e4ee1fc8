"""The files of a GALLERY directory and its manifest, `gallery.json`.

GALLERY/gallery.json       format, model, source, counts, index, checksums, what was skipped and why
GALLERY/embeddings.npy     float32 [n, d], rows of unit length
GALLERY/items.parquet      a row per image: what it is and where it lies
GALLERY/index.faiss        the approximate index, where the images are so many that it pays
GALLERY/thumbnails/ab/     JPEG files of at most 256 pixels a side, by the SHA-256 of their images

The files change together: a new state is written beside the old one, named `.next` when it is whole, and its files then
move to their places. A process that is killed in between leaves the rest of the move to the next writer; until then a
reader finds a file in `.next` if it is still there.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crosspair.errors import UserError
from crosspair.storage import manifest as manifests
from crosspair.storage.directories import FILES, GALLERY_WORK, MOVING, expect_kind, kind_of
from crosspair.storage.files import full_disk_is_an_error, write_through
from crosspair.version import __version__

FORMAT = 1
MANIFEST = FILES["GALLERY"]
EMBEDDINGS = "embeddings.npy"
ITEMS = "items.parquet"
INDEX = "index.faiss"
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class Place:
    """A directory outside of the gallery, absolute and as seen from the gallery: both may be moved together."""

    path: str
    relative: str

    @classmethod
    def of(cls, directory: Path, gallery: Path) -> "Place":
        absolute = directory.resolve()
        return cls(str(absolute), os.path.relpath(absolute, gallery.resolve()))

    def find(self, gallery: Path) -> Path:
        """The present location: at its absolute path, or else where it is as seen from the gallery."""
        absolute, near = Path(self.path), gallery.resolve() / self.relative
        return near if not absolute.exists() and near.exists() else absolute


@dataclass(frozen=True)
class FileFacts:
    """Size and checksum of a file as it was written."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileFacts":
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Skipped:
    """An image that is not in the gallery, and why."""

    item_id: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """`gallery.json`."""

    model: Place | str  # a directory, or a name on the hub
    model_checksum: str
    source: Place
    source_kind: str  # folder or data
    splits: list[str]  # of DATA; none of a folder
    dimension: int
    count: int
    backends: list[str]  # what the images were encoded with
    index: dict[str, Any]  # kind: the engine that searches; what it said of the index it built
    engine: str = "auto"  # that was asked for
    skipped: list[Skipped] = field(default_factory=list)
    other_files: dict[str, int] = field(default_factory=dict)  # by suffix: files of the folder that are no images
    files: dict[str, FileFacts] = field(default_factory=dict)
    crosspair: str = __version__  # that wrote it
    format: int = FORMAT


def read_manifest(gallery: Path) -> Manifest:
    """`gallery.json`. Raises UserError when the directory is no gallery, damaged, or of a newer format."""
    expect_kind(gallery, "GALLERY")
    if is_unfinished(gallery):
        raise UserError(
            f"{gallery} is not a GALLERY directory (indexing it was interrupted; the same `crosspair index` command "
            "goes on)"
        )
    path = current_file(gallery, MANIFEST)
    return manifests.read_manifest(path, Manifest, FORMAT, "copy the gallery again or index anew")


def current_file(gallery: Path, name: str) -> Path:
    """The path of a file of the gallery's newest whole state."""
    moving = gallery / MOVING / name
    return moving if moving.exists() else gallery / name


def checked_file(gallery: Path, name: str, facts: FileFacts, *, contents: bool) -> Path:
    """The path of a file whose size, and with `contents` whose checksum, is the manifest's. Raises UserError."""
    path = current_file(gallery, name)
    if not path.is_file():
        raise UserError(f"{gallery} is damaged ({name} is missing); copy the gallery again or index anew")
    size = path.stat().st_size
    if size != facts.bytes:
        raise UserError(
            f"{path} is damaged ({size:,} bytes, expected {facts.bytes:,}); copy the gallery again or index anew"
        )
    if contents and FileFacts.of(path) != facts:
        raise UserError(f"{path} is damaged (its checksum is another); copy the gallery again or index anew")
    return path


@contextmanager
def new_state(gallery: Path) -> Iterator[Path]:
    """A folder for a new state's embeddings, items and index, which `commit` then makes the gallery's own."""
    finish_commit(gallery)
    folder = gallery / f"{MOVING}.unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with full_disk_is_an_error(gallery):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(gallery: Path, folder: Path, manifest: Manifest) -> None:
    """Make the files in `folder` the gallery's, all or none whenever the process is killed."""
    files = {path.name: FileFacts.of(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(manifests.manifest_text(replace(manifest, files=files)), encoding="utf-8")
    write_through(folder)
    folder.rename(gallery / MOVING)
    finish_commit(gallery)


def finish_commit(gallery: Path) -> None:
    """Move what a whole new state still holds to its places; nothing to do where there is none."""
    folder = gallery / MOVING
    if not folder.is_dir():
        return
    if (folder / MANIFEST).is_file():
        # The manifest goes last: as long as it is in the folder, files are looked for there first.
        for name in (EMBEDDINGS, ITEMS, INDEX, MANIFEST):
            if (folder / name).exists():
                (folder / name).replace(gallery / name)
    shutil.rmtree(folder)
    if INDEX not in read_manifest(gallery).files:
        (gallery / INDEX).unlink(missing_ok=True)


def work_folder(gallery: Path) -> Path:
    """The folder in which a run under way keeps what it has encoded."""
    return gallery / GALLERY_WORK


def is_unfinished(gallery: Path) -> bool:
    """Whether a first run was interrupted."""
    return kind_of(gallery) == "GALLERY" and not current_file(gallery, MANIFEST).is_file()
