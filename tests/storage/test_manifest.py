"""Manifests come back as they were written; what a stranger wrote is one sentence with the field's name."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from crosspair.errors import UserError
from crosspair.settings import Range
from crosspair.storage import manifest
from crosspair.storage.manifest import manifest_text, read_manifest, read_object


@dataclass(frozen=True)
class Part:
    name: str
    size: int
    label: int = field(default=0, metadata={"range": Range()})


@dataclass(frozen=True)
class Whole:
    parts: list[Part]
    counts: dict[str, int]
    place: Part | str
    kind: Literal["folder", "data"]
    share: float = field(default=0.5, metadata={"range": Range(above=0, at_most=1)})
    exact: bool = True
    note: str | None = None
    free: dict[str, Any] = field(default_factory=dict)
    crosspair: str = "0.1"
    format: int = 1


WHOLE = Whole([Part("a", 1, -3)], {"x": 2}, Part("b", 0), "folder", note="as it is", free={"any": [1, None]})


def read(path):
    return read_manifest(path, Whole, 1, "copy it again")


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "whole.json"
    path.write_text(manifest_text(WHOLE), encoding="utf-8")
    assert read(path) == WHOLE


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parts": {}}, "field 'parts' is an object; expected a list"),
        ({"parts": [5]}, "field 'parts[0]' is 5; expected an object"),
        ({"parts": [{"name": "a"}]}, "field 'parts[0].size' is missing"),
        ({"parts": [{"name": "a", "size": -1}]}, "field 'parts[0].size' is -1; expected a whole number of at least 0"),
        ({"parts": [{"name": "a", "size": True}]}, "field 'parts[0].size' is true; expected a whole number"),
        ({"parts": [{"name": "a", "size": 1.5}]}, "field 'parts[0].size' is 1.5; expected a whole number"),
        ({"parts": [{"name": "a", "size": 10**30}]}, "field 'parts[0].size' is 1000000"),
        ({"parts": [{"name": 7, "size": 1}]}, "field 'parts[0].name' is 7; expected a text"),
        ({"counts": {"x": "many"}}, "field 'counts.x' is \"many\"; expected a whole number"),
        ({"counts": []}, "field 'counts' is a list; expected an object"),
        ({"place": 3}, "field 'place' is 3; expected a text"),
        ({"kind": "other"}, "field 'kind' is \"other\"; expected 'folder' or 'data'"),
        ({"share": float("nan")}, "field 'share' is NaN; expected a number"),
        ({"share": 0}, "field 'share' is 0; expected a number above 0 and at most 1"),
        ({"exact": 1}, "field 'exact' is 1; expected true or false"),
        ({"note": 1}, "field 'note' is 1; expected a text"),
        ({"surprise": 1}, "field 'surprise' is unknown"),
        ({"x\n" * 200: 1}, "is unknown"),
        ({"format": "1"}, "field 'format' is \"1\"; expected a whole number"),
        ({"format": -1}, "field 'format' is -1"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, sentence):
    path = tmp_path / "whole.json"
    path.write_text(json.dumps(json.loads(manifest_text(WHOLE)) | changes))
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith("copy it again")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("name", ["parts", "counts", "kind", "format"])
def test_a_missing_field_is_named(tmp_path, name):
    path = tmp_path / "whole.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(manifest_text(WHOLE)).items() if key != name}))
    with pytest.raises(UserError, match=f"field '{name}' is missing"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"5", b"\xff\xfe", b'{"format": ', b"[" * 100_000, manifest_text(WHOLE).encode()[:-20]],
)
def test_what_is_no_manifest_is_one_sentence(tmp_path, content):
    path = tmp_path / "whole.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \(.+\); copy it again") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_newer_format_says_who_wrote_it(tmp_path):
    path = tmp_path / "whole.json"
    path.write_text(json.dumps({"format": 2, "crosspair": "9.1", "unheard": 1}))
    with pytest.raises(UserError, match=r"has format 2, this crosspair reads formats up to 1; upgrade .*by 9\.1"):
        read(path)


def test_an_absurdly_large_file_is_not_even_read(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "LARGEST", 100)
    path = tmp_path / "whole.json"
    path.write_text(json.dumps({"format": 1, "long": "x" * 100}))
    with pytest.raises(UserError, match=r"it has \d+ bytes, expected 100 at most"):
        read_object(path, 1, "copy it again")
