"""Helpers of the readers: checked access to a source's fields, and sentences for what is not as expected."""

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from crosspair.data.records import printable
from crosspair.errors import UserError

IMAGE_COLUMNS = ("image", "file_name")
CAPTION_COLUMNS = ("caption", "captions", "text")
WHOLE_NUMBER = re.compile("-?[0-9]{1,18}")  # fits 64 bits
_SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


class SchemaError(Exception):
    """An error in a source, in words that follow its name and a colon."""


class Entry:
    """Typed access to the fields of one JSON object; a missing or wrong one is a SchemaError that names the object."""

    def __init__(self, fields: Any, name: str) -> None:
        if not isinstance(fields, dict):
            raise SchemaError(f"{name} is {kind_of(fields)}, not an object")
        self.fields = fields
        self.name = name

    def get(self, key: str, kind: type) -> Any:
        if key not in self.fields:
            raise SchemaError(f"{self.name} has no '{key}'")
        value = self.fields[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise SchemaError(f"{self.name} has {kind_of(value)} as '{key}', not {_KINDS[kind]}")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise SchemaError(f"{self.name} has '{key}' that are not strings")
        return tuple(values)

    def image(self, key: str) -> str:
        """The path of an image inside its folder."""
        return path_inside(self.get(key, str), self.name, key)


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a decimal number",
    bool: "a truth value",
    type(None): "null",
}


def kind_of(value: object) -> str:
    """The kind of a value in words."""
    return _KINDS.get(type(value), f"a value of type {type(value).__name__}")


def keys_of(fields: Iterable[str]) -> str:
    """The first few keys of an object, or columns of a table."""
    return ", ".join(printable(key[:40]) for key in list(fields)[:5]) or "nothing"


def path_inside(path: str, owner: str, key: str) -> str:
    """A path, normalised, that stays inside the folder it is looked up in: the file may be a stranger's.

    Raises SchemaError with `owner`, the entry whose field `key` it is.
    """
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
        raise SchemaError(f"{owner} leads out of the folder of pictures ({path[:80]!r})")
    if parts.name in ("", "."):
        raise SchemaError(f"{owner} has an empty '{key}'")
    return str(parts)


def load_json(path: Path, advice: str) -> Any:
    """The content of a JSON file. Raises UserError that ends in `advice`."""
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise unreadable(path, error, advice) from error
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path} is not JSON ({reason}); {advice}") from error


def unreadable(path: Path, error: OSError, advice: str) -> UserError:
    """A sentence for a source that can't be opened."""
    name = printable(str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}...")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{name} does not exist; {advice}")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{name} is a folder; {advice}")
    return UserError(f"{name} can't be read ({error.strerror}); {advice}")


def require_folder(images: Path) -> None:
    """Raises UserError when the folder of images is none."""
    if not images.is_dir():
        raise UserError(f"{images} is not a folder; expected --images to name the folder that holds the pictures")


def find_columns(present: Iterable[str], image_column: str | None, caption_column: str | None) -> tuple[str, str]:
    """The columns of the images and of the captions: those named, else one of the usual names. Raises SchemaError."""
    names = list(present)
    return (
        _find(image_column, IMAGE_COLUMNS, "image", names),
        _find(caption_column, CAPTION_COLUMNS, "caption", names),
    )


def _find(wanted: str | None, usual: tuple[str, ...], kind: str, present: list[str]) -> str:
    found = [name for name in ((wanted,) if wanted else usual) if name in present]
    if not found:
        missing = f"'{printable(wanted)}'" if wanted else f"'{usual[0]}'"
        raise SchemaError(f"it has no column {missing} (found {keys_of(present)}); name it with --{kind}-column")
    return found[0]


def split_name(value: str) -> str:
    """A split's name as this project writes it: lower case, "validation" as "val"."""
    name = value.strip().lower()
    return _SPLIT_NAMES.get(name, name)


def captions_of(value: object, where: str, column: str) -> list[str]:
    """A caption, a list of them, or none. An empty cell is an empty caption, which preparing reports."""
    values: list[Any] = value if isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, str | None):
            raise SchemaError(f"{where} has {kind_of(one)} as '{column}', not a caption or a list of captions")
    return [one or "" for one in values]


def tokens_of(value: object, where: str, captions: int, key: str = "tokens") -> tuple[tuple[str, ...], ...]:
    """The field `key`: a list of the words of each caption."""
    lists: list[Any] = value if isinstance(value, list) else [value]
    for words in lists:
        if not isinstance(words, list) or not isinstance(value, list):
            raise SchemaError(f"{where} has {kind_of(words)} in '{key}', not a list of words for each caption")
        if not all(isinstance(word, str) for word in words):
            raise SchemaError(f"{where} has words in '{key}' that are not strings")
    if len(lists) != captions:
        raise SchemaError(f"{where} has {captions} captions, but '{key}' of {len(lists)}")
    return tuple(map(tuple, lists))


def number_labels(labels: Iterable[str]) -> dict[str, int]:
    """Labels as numbers: whole numbers stay, names count up in alphabetical order."""
    names = sorted(set(labels))
    if all(WHOLE_NUMBER.fullmatch(name) for name in names):
        return {name: int(name) for name in names}
    return {name: place for place, name in enumerate(names)}
