"""Manifests: dataclasses as JSON files, read as if a stranger had written them.

Each field is checked against its annotation (str, bool, int, float, None, Any, Literal, list, dict, unions and further
dataclasses). A field may limit its numbers with `metadata={"range": Range(...)}`; whole ones are otherwise at least 0.
The fields `format` and `crosspair` are the version of the layout and of the package that wrote it.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from crosspair.errors import UserError
from crosspair.settings import Range

T = TypeVar("T")

LARGEST = 256_000_000  # bytes of a manifest; ours are kilobytes, or megabytes where much was skipped
_MOST = 2**63 - 1
_COUNT = Range(at_least=0)  # of a whole number whose field says nothing


class ManifestError(ValueError):
    """An error in a manifest's value, in words that follow the name of its field."""


def manifest_text(manifest: Any) -> str:
    """A manifest as JSON, readable by people."""
    return json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"


def read_manifest(path: Path, kind: type[T], newest: int, advice: str, problem: str = "is damaged") -> T:
    """The manifest in a file. newest: format that can be read. advice: what to do with a damaged one.

    problem: what the error says of a damaged one. Raises UserError for it, naming the field, and for a newer format.
    """
    with damage_named(path, advice, problem):
        return parse(kind, read_object(path, newest, advice, problem))


def read_object(path: Path, newest: int, advice: str, problem: str = "is damaged") -> dict[str, Any]:
    """The JSON object in a file, of which no more is known than its format. Raises UserError as `read_manifest`.

    problem: what the error says of a file that is none.
    """
    with damage_named(path, advice, problem):
        size = path.stat().st_size
        if size > LARGEST:
            raise ManifestError(f"it has {size:,} bytes, expected {LARGEST:,} at most")
        found = json.loads(path.read_bytes().decode("utf-8"))
        if not isinstance(found, dict):
            raise ManifestError(f"it is {_shown(found)}, expected an object")
        if "format" not in found:
            raise ManifestError("field 'format' is missing")
        version = checked(int, found["format"], "format")
        if version > newest:
            writer = f" (it was written by {found['crosspair']!s:.40})" if found.get("crosspair") else ""
            raise UserError(
                f"{path} has format {version}, this crosspair reads formats up to {newest}; "
                f"upgrade crosspair{writer}, or {advice}"
            )
        return found


@contextmanager
def damage_named(path: Path, advice: str, problem: str = "is damaged") -> Iterator[None]:
    """Turn what is found wrong with a manifest in the block into one sentence."""
    try:
        yield
    except (ManifestError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, ManifestError) else f"{error!s:.100}"
        raise UserError(f"{path} {problem} ({reason}); {advice}") from error


def parse(kind: type[T], found: Any, name: str = "") -> T:
    """A dataclass from a JSON object. Raises ManifestError for a field that is missing, unknown or of another type."""
    if not isinstance(found, dict):
        raise ManifestError(f"{_field(name)} is {_shown(found)}; expected an object")
    known = {each.name: each for each in fields(cast(Any, kind))}
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in found.items():
        if key not in known:
            raise ManifestError(f"{_field(_join(name, key))} is unknown")
        values[key] = checked(types[key], value, _join(name, key), known[key].metadata.get("range"))
    for key, each in known.items():
        if key not in found and each.default is MISSING and each.default_factory is MISSING:
            raise ManifestError(f"{_field(_join(name, key))} is missing")
    return kind(**values)


def checked(declared: Any, value: Any, name: str, limits: Range | None = None) -> Any:
    """A value from JSON as its declared type. Raises ManifestError naming the field."""
    origin, arguments = get_origin(declared), get_args(declared)
    if declared is Any:
        return value
    if origin in (UnionType, Union):
        return _one_of(arguments, value, name, limits)
    if origin is Literal:
        expected = " or ".join(map(repr, arguments))
        return _expect(value in arguments, value, value, name, expected)
    if origin is list:
        _expect(isinstance(value, list), value, value, name, "a list")
        return [checked(arguments[0], each, f"{name}[{row}]", limits) for row, each in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, dict), value, value, name, "an object")
        return {key: checked(arguments[1], each, _join(name, key), limits) for key, each in value.items()}
    if is_dataclass(declared):
        return parse(cast(type[Any], declared), value, name)
    if declared is int:
        limits = _COUNT if limits is None else limits
        fits = type(value) is int and -_MOST <= value <= _MOST and value in limits
        return _expect(fits, value, value, name, "a whole number" + _limited(limits))
    if declared is float:
        limits = Range() if limits is None else limits
        fits = type(value) in (int, float) and math.isfinite(value) and value in limits
        return _expect(fits, value, value, name, "a number" + _limited(limits))
    if declared is bool:
        return _expect(isinstance(value, bool), value, value, name, "true or false")
    if declared is str:
        return _expect(isinstance(value, str), value, value, name, "a text")
    return _expect(value is None, value, value, name, "null")


def _limited(limits: Range) -> str:
    if limits == Range():
        return ""
    return f" of {limits}" if str(limits).startswith("at ") else f" {limits}"


def _one_of(kinds: tuple[Any, ...], value: Any, name: str, limits: Range | None) -> Any:
    """The first of several types that fits; the last one's error where none does."""
    if value is not None:  # an error then says what it should be instead
        kinds = tuple(kind for kind in kinds if kind is not NoneType)
    for number, kind in enumerate(kinds):
        try:
            return checked(kind, value, name, limits)
        except ManifestError:
            if number == len(kinds) - 1:
                raise
    raise AssertionError


def _expect(fits: bool, found: Any, value: Any, name: str, expected: str) -> Any:
    if not fits:
        raise ManifestError(f"{_field(name)} is {_shown(found)}; expected {expected}")
    return value


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _field(name: str) -> str:
    """A field's name as a message shows it: whatever a stranger called it, in a line and not too long."""
    return f"field {name[:80]!r}" if name else "it"


def _shown(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value)) or f"{json.dumps(value)[:40]}"
