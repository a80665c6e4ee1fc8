"""Temporary databases: any text comes back, and nothing stays in a folder; images that come twice are reported.

The same image in two splits or under two labels is a duplicate; twice under one label it is not.
"""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from crosspair.data.dataset import inspect_data, open_data
from crosspair.data.layout import Duplicate
from crosspair.data.prepare import describe, prepare
from crosspair.data.records import Record
from crosspair.data.scratch import DuplicateFinder, SeenNames, pack, scratch_database, short_checksum, unpack

TEXT = st.text(st.characters())  # halves of characters too


@given(st.lists(TEXT))
def test_any_text_comes_back_in_the_order_of_python(texts):
    database = scratch_database("texts(text BLOB)")
    database.executemany("INSERT INTO texts VALUES (?)", [(pack(text),) for text in texts])
    found = database.execute("SELECT text FROM texts ORDER BY text")
    assert [unpack(text) for (text,) in found] == sorted(texts)


@given(st.lists(TEXT))
def test_a_name_is_new_once(names):
    seen = SeenNames()
    assert [seen.add(name) for name in names] == [name not in names[:place] for place, name in enumerate(names)]


def test_a_large_one_is_in_a_file_that_vanishes_with_its_process():
    database = scratch_database("texts(text BLOB)")
    database.executemany("INSERT INTO texts VALUES (?)", ((bytes(1 << 20),) for _ in range(64)))
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert any("etilqs" in link and link.endswith("(deleted)") for link in links)


def record(name: str, image: bytes, label: int, split: str = "train") -> Record:
    return Record(name, image, label, ("a dog",), split)


def duplicates(records: list[Record]) -> list[Duplicate]:
    finder = DuplicateFinder()
    for one in records:
        assert isinstance(one.image, bytes)
        finder.add(one, short_checksum(one.image))
    return finder.found


def test_the_same_bytes_under_another_label_or_in_another_split_are_found():
    records = [record("a", b"1", 0), record("b", b"1", 0), record("c", b"1", 1), record("d", b"1", 0, "test")]
    assert duplicates([*records, record("e", b"2", 5)]) == [
        Duplicate("c", "train", 1, "a", "train", 0),
        Duplicate("d", "test", 0, "a", "train", 0),
    ]


def test_they_are_in_the_summary_the_manifest_and_inspect(tmp_path: Path, encode, pixels):
    large, small = encode(pixels(300, 400)), encode(pixels(20, 30), "PNG")  # one is encoded anew, one keeps its bytes
    records = [record("a", large, 0), record("b", small, 1), record("c", large, 2), record("d", small, 1, "test")]
    summary = prepare(records, tmp_path / "data", source={"format": "test"}, processes=1, progress=False)
    for text in (describe(summary), inspect_data(tmp_path / "data")):
        assert "duplicates: 2 pictures have the bytes of an earlier one, 1 of them in another split" in text
        assert "  train: c (label 2) is train: a (label 0)" in text
        assert "  test: d (label 1) is train: b (label 1)" in text
    assert open_data(tmp_path / "data").manifest.duplicates == summary.duplicates
    assert [
        item["image_id"] for item in json.loads((tmp_path / "data" / "crosspair.json").read_text())["duplicates"]
    ] == [
        "c",
        "d",
    ]


def test_of_many_the_first_are_shown(tmp_path: Path, encode, pixels):
    image = encode(pixels(20, 30), "PNG")
    records = [record(str(number), image, number) for number in range(20)]
    text = describe(prepare(records, tmp_path / "data", source={}, processes=1, progress=False))
    assert "duplicates: 19 pictures" in text
    assert "train: 5 (label 5)" in text
    assert "train: 6 (label 6)" not in text
    assert "and 14 more, all listed in crosspair.json" in text
