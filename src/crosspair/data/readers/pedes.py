"""Person search: CUHK-PEDES, ICFG-PEDES and RSTPReid, a list of images, each with the number of the person it shows.

    [{"split": "train", "captions": ["A man ...", "He ..."], "file_path": "CUHK01/0363004.png",
      "processed_tokens": [["a", "man", ...], ["he", ...]], "id": 1}, ...]

RSTPReid names the image `img_path` and has no tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crosspair.data.reader import Counts, published
from crosspair.data.readers.schema import (
    Entry,
    SchemaError,
    keys_of,
    kind_of,
    load_json,
    require_folder,
    split_name,
    tokens_of,
)
from crosspair.data.records import Record
from crosspair.errors import UserError
from crosspair.registry import register_reader

SPLITS = ("train", "val", "test")


_CUHK_PEDES = {  # Li et al. (2017) and the file itself
    "train": Counts(34_054, 68_126, 11_003),
    "val": Counts(3_078, 6_158, 1_000),
    "test": Counts(3_074, 6_156, 1_000),
}
_ICFG_PEDES = {  # Ding et al. (2021)
    "train": Counts(34_674, 34_674, 3_102),
    "test": Counts(19_848, 19_848, 1_000),
}
_RSTPREID = {  # Zhu et al. (2021)
    "train": Counts(18_505, 37_010, 3_701),
    "val": Counts(1_000, 2_000, 200),
    "test": Counts(1_000, 2_000, 200),
}


@register_reader("cuhk-pedes")
@published(_CUHK_PEDES)
def read_cuhk_pedes(annotations: Path, images: Path) -> list[Record]:
    """CUHK-PEDES by its reid_raw.json; the label is the number of the person less one."""
    # The first person is 1: the 11,003 of train become the labels 0..11002.
    return _read(annotations, images, files=("reid_raw.json",), first_id=1)


@register_reader("icfg-pedes")
@published(_ICFG_PEDES)
def read_icfg_pedes(annotations: Path, images: Path) -> list[Record]:
    """ICFG-PEDES by its ICFG-PEDES.json; the label is the number of the person."""
    return _read(annotations, images, files=("ICFG-PEDES.json", "ICFG_PEDES.json"))


@register_reader("rstpreid")
@published(_RSTPREID)
def read_rstpreid(annotations: Path, images: Path) -> list[Record]:
    """RSTPReid by its data_captions.json; the label is the number of the person."""
    return _read(annotations, images, files=("data_captions.json",), image="img_path")


def _read(
    annotations: Path, images: Path, *, files: tuple[str, ...], image: str = "file_path", first_id: int = 0
) -> list[Record]:
    """A record per entry, in the order of the file; label = id - first_id, image_id = the image's path.

    annotations: the JSON file, or the folder that holds it as one of `files`. Raises UserError, before the first
    record, when the file or an entry has another shape.
    """
    fix = f"expected {' or '.join(files)} as its authors hand it out"
    require_folder(images)
    path = _find(annotations, files)
    entries = load_json(path, fix)
    try:
        records = [_record(entry, images, image, first_id) for entry in _numbered(entries, image)]
        with_tokens = [record.tokens is not None for record in records]
        if any(with_tokens) and not all(with_tokens):
            raise SchemaError("'processed_tokens' are in some entries only; give them to every one, or to none")
    except SchemaError as problem:
        raise UserError(f"{path} can't be used: {problem}; {fix}") from None
    return records


def _find(annotations: Path, files: tuple[str, ...]) -> Path:
    """The file itself, or the first of the known names that the folder holds."""
    inside = (annotations / name for name in files)
    return next((path for path in inside if path.is_file()), annotations) if annotations.is_dir() else annotations


def _numbered(entries: Any, image: str) -> Iterator[Entry]:
    if not isinstance(entries, list):
        found = f"an object with {keys_of(entries)}" if isinstance(entries, dict) else kind_of(entries)
        raise SchemaError(f"found {found}, not a list of pictures")
    for number, fields in enumerate(entries):
        named = isinstance(fields, dict) and isinstance(fields.get(image), str)
        yield Entry(fields, f"entry {number}" + (f" ({fields[image][:80]!r})" if named else ""))


def _record(entry: Entry, images: Path, image: str, first_id: int) -> Record:
    split = split_name(entry.get("split", str))
    if split not in SPLITS:
        raise SchemaError(f"{entry.name} is in split {split[:40]!r}, not in one of {', '.join(SPLITS)}")
    image_id = entry.image(image)
    captions = entry.strings("captions")
    label = entry.get("id", int) - first_id
    return Record(image_id, images / image_id, label, captions, split, _tokens(entry, len(captions)))


def _tokens(entry: Entry, captions: int) -> tuple[tuple[str, ...], ...] | None:
    if "processed_tokens" not in entry.fields:
        return None
    return tokens_of(entry.fields["processed_tokens"], entry.name, captions, "processed_tokens")
