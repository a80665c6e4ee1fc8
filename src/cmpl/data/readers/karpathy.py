"""Karpathy's JSON: Flickr8k, Flickr30k and COCO with the splits everyone reports on.

    {"dataset": "coco", "images": [{"imgid": 0, "split": "train", "filepath": "train2014", "filename": "a.jpg",
                                    "sentences": [{"raw": "A dog runs .", "tokens": ["a", "dog", "runs"]}, ...]}, ...]}

COCO's pictures lie under filepath/filename, the others' have no filepath.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cmpl.data.records import Record, printable
from cmpl.errors import UserError

SPLITS = ("train", "val", "test", "restval")
_FIX = "expected Karpathy's dataset_flickr8k.json, dataset_flickr30k.json or dataset_coco.json"


def read_karpathy(annotations: Path, images: Path) -> Iterator[Record]:
    """A record per entry of `images`, in the order of the file; label = imgid, image_id = [filepath/]filename.

    Raises UserError, before the first record, when the file or an entry has another shape.
    """
    if not images.is_dir():
        raise UserError(f"{images} is not a folder; expected --images to name the folder that holds the pictures")
    entries = _load(annotations)
    try:
        records = [_record(entry, images) for entry in _numbered(entries)]
    except _SchemaError as problem:
        raise UserError(f"{annotations} is not Karpathy's JSON: {problem}; {_FIX}") from None
    return iter(records)


class _SchemaError(Exception):
    """What is wrong, in words."""


class _Entry:
    """Typed access to one entry of `images`; a missing or wrong field is a _SchemaError that names the entry."""

    def __init__(self, fields: Any, name: str) -> None:
        if not isinstance(fields, dict):
            raise _SchemaError(f"{name} is {_kind(fields)}, not an object")
        self.fields = fields
        self.name = name

    def get(self, key: str, kind: type) -> Any:
        if key not in self.fields:
            raise _SchemaError(f"{self.name} has no '{key}'")
        value = self.fields[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _SchemaError(f"{self.name} has {_kind(value)} as '{key}', not {_KINDS[kind]}")
        return value


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a decimal number",
    bool: "a truth value",
    type(None): "null",
}


def _kind(value: object) -> str:
    return _KINDS[type(value)]


def _load(path: Path) -> list[Any]:
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {_FIX}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; {_FIX}") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); {_FIX}") from error
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path} is not JSON ({reason}); {_FIX}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        found = f"an object with {_keys(content)}" if isinstance(content, dict) else _kind(content)
        raise UserError(f"{path} is not Karpathy's JSON: found {found}, not an object with a list of images; {_FIX}")
    entries: list[Any] = content["images"]
    return entries


def _keys(fields: dict[str, Any]) -> str:
    return ", ".join(printable(key[:40]) for key in list(fields)[:5]) or "nothing"


def _numbered(entries: list[Any]) -> Iterator[_Entry]:
    for number, fields in enumerate(entries):
        named = isinstance(fields, dict) and isinstance(fields.get("filename"), str)
        yield _Entry(fields, f"image {number}" + (f" ({fields['filename'][:80]!r})" if named else ""))


def _record(entry: _Entry, images: Path) -> Record:
    split = entry.get("split", str)
    if split not in SPLITS:
        raise _SchemaError(f"{entry.name} is in split {split[:40]!r}, not in one of {', '.join(SPLITS)}")
    image_id = _image_id(entry)
    captions: list[str] = []
    tokens: list[tuple[str, ...]] = []
    for number, fields in enumerate(entry.get("sentences", list)):
        sentence = _Entry(fields, f"sentence {number} of {entry.name}")
        captions.append(sentence.get("raw", str))
        words = sentence.get("tokens", list)
        if not all(isinstance(word, str) for word in words):
            raise _SchemaError(f"{sentence.name} has 'tokens' that are not strings")
        tokens.append(tuple(words))
    return Record(image_id, images / image_id, entry.get("imgid", int), tuple(captions), split, tuple(tokens))


def _image_id(entry: _Entry) -> str:
    """The picture's path inside the folder. A path that leads out of it is refused: the file may be a stranger's."""
    filename = entry.get("filename", str)
    folder = entry.get("filepath", str) if "filepath" in entry.fields else ""
    for part in (filename, folder):
        if PurePosixPath(part).is_absolute() or ".." in PurePosixPath(part).parts or "\\" in part or "\0" in part:
            raise _SchemaError(f"{entry.name} leads out of the folder of pictures ({part[:80]!r})")
    if not filename or PurePosixPath(filename).name in ("", "."):
        raise _SchemaError(f"{entry.name} has an empty 'filename'")
    return str(PurePosixPath(folder, filename))
