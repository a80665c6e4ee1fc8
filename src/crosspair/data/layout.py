"""The files of a DATA directory and its manifest, `crosspair.json`.

DATA/crosspair.json             format, source, counts, checksums, what was left out and why
DATA/dataset_dict.json     the splits, for `datasets.load_from_disk`
DATA/train/                one folder per split: data-00000.arrow and so on, listed in state.json; dataset_info.json
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosspair.data.records import printable
from crosspair.errors import UserError
from crosspair.settings import Range
from crosspair.storage import manifest as manifests
from crosspair.storage.directories import FILES, expect_kind

FORMAT = 1
MANIFEST = FILES["DATA"]
DATASET_DICT = "dataset_dict.json"
STATE = "state.json"  # of a split
_FIRST_SPLITS = ("train", "val", "test", "restval")


@dataclass(frozen=True)
class SplitFacts:
    """Counts of one split. checksum: SHA-256 of all its rows, whatever file they are in."""

    images: int
    captions: int
    labels: int
    bytes: int  # of its Arrow files together
    checksum: str


@dataclass(frozen=True)
class Skipped:
    """A record that is not in the data, and why."""

    image_id: str
    split: str
    reason: str


@dataclass(frozen=True)
class CaptionLeftOut:
    """A caption that is not in the data though its image is, and why. number: its place in the source, from 1."""

    image_id: str
    split: str
    number: int
    reason: str


@dataclass(frozen=True)
class Duplicate:
    """An image whose bytes came before, as `first_id`, under another label or in another split."""

    image_id: str
    split: str
    label: int = field(metadata={"range": Range()})
    first_id: str
    first_split: str
    first_label: int = field(metadata={"range": Range()})


@dataclass(frozen=True)
class Manifest:
    """`crosspair.json`."""

    source: dict[str, Any]
    size: int  # shorter side in pixels, 0: bytes as they were
    splits: dict[str, SplitFacts]
    skipped: list[Skipped] = field(default_factory=list)
    captions_left_out: list[CaptionLeftOut] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    crosspair: str = ""  # the version that wrote it
    format: int = FORMAT

    def to_json(self) -> str:
        return manifests.manifest_text(self)


def split_order(names: list[str]) -> list[str]:
    """train, val, test, restval, then the others by name."""
    return sorted(names, key=lambda name: (_FIRST_SPLITS.index(name) if name in _FIRST_SPLITS else 9, name))


def arrow_file(number: int) -> str:
    """The name of a split's shard."""
    return f"data-{number:05d}.arrow"


def arrow_files(split: Path) -> list[Path]:
    """The shards of a split in their order, as its state.json lists them; none without it. Raises UserError."""
    path = split / STATE
    try:
        names = [entry["filename"] for entry in json.loads(path.read_text(encoding="utf-8"))["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files of other folders")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r:.100}); prepare the data again or copy it again") from error
    return [split / name for name in names]


def read_manifest(directory: Path) -> Manifest:
    """`crosspair.json` of a DATA directory. Raises UserError when it is none, damaged, or of a newer format."""
    expect_kind(directory, "DATA")
    manifest = manifests.read_manifest(
        directory / MANIFEST, Manifest, FORMAT, "prepare the data again or copy it again"
    )
    for name in manifest.splits:
        if not name or name != Path(name).name:  # a split is a folder of that name, inside the directory
            path = directory / MANIFEST
            raise UserError(f"{path} is damaged (a split is called {name[:40]!r}); prepare the data again")
    return manifest


def describe_skipped(skipped: list[Skipped], shown: int = 10) -> list[str]:
    """A line that counts what was skipped, and one for each of the first few."""
    if not skipped:
        return ["skipped: nothing"]
    lines = [f"skipped: {len(skipped):,} pictures"]
    lines += [f"  {item.split}: {printable(item.image_id)} {item.reason}" for item in skipped[:shown]]
    if len(skipped) > shown:
        lines.append(f"  and {len(skipped) - shown:,} more, all listed in crosspair.json")
    return lines


def describe_captions_left_out(captions: list[CaptionLeftOut], shown: int = 5) -> list[str]:
    """A line that counts the captions left out, and one for each of the first few; none where there are none."""
    if not captions:
        return []
    lines = [f"captions left out: {len(captions):,}"]
    lines += [
        f"  {one.split}: caption {one.number} of {printable(one.image_id)} {one.reason}" for one in captions[:shown]
    ]
    if len(captions) > shown:
        lines.append(f"  and {len(captions) - shown:,} more, all listed in crosspair.json")
    return lines


def describe_duplicates(duplicates: list[Duplicate], shown: int = 5) -> list[str]:
    """Lines about images that are in two splits or have two labels; none when there are none."""
    if not duplicates:
        return []
    splits = sum(item.split != item.first_split for item in duplicates)
    lines = [
        f"duplicates: {len(duplicates):,} pictures have the bytes of an earlier one, {splits:,} of them in another "
        "split, the others under another label"
    ]
    lines += [f"  {_place(item.split, item.image_id, item.label)} is {_first(item)}" for item in duplicates[:shown]]
    if len(duplicates) > shown:
        lines.append(f"  and {len(duplicates) - shown:,} more, all listed in crosspair.json")
    return lines


def _first(item: Duplicate) -> str:
    return _place(item.first_split, item.first_id, item.first_label)


def _place(split: str, image_id: str, label: int) -> str:
    return f"{split}: {printable(image_id)} (label {label})"
