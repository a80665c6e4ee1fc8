"""Your own table: rows of one picture are one record; what can't be read is a sentence that names its row."""

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crosspair.cli import main
from crosspair.data.dataset import open_data
from crosspair.data.readers.table import read_table
from crosspair.errors import UserError

ROWS = [
    {"image": "a b.png", "caption": "A dog, running"},
    {"image": "sub/c.png", "caption": "zwei\nHunde"},
    {"image": "a b.png", "caption": 'the "dog"'},
]
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path, rows: list[dict[str, Any]] | str, **columns: str):
    if isinstance(rows, str):
        path.write_text(rows, encoding="utf-8")
    else:
        write(path, rows)
    return list(read_table(path, path.parent, **columns))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_rows_of_a_picture_become_one_record_in_the_order_of_the_table(tmp_path, name):
    first, second = read(tmp_path / name, ROWS)
    assert (first.image_id, first.image, first.label) == ("a b.png", tmp_path / "a b.png", 0)
    assert first.captions == ("A dog, running", 'the "dog"')
    assert (second.image_id, second.label, second.captions) == ("sub/c.png", 1, ("zwei\nHunde",))
    assert first.split == second.split == ""


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_row_can_hold_a_list_of_captions(tmp_path, name):
    (record,) = read(tmp_path / name, [{"image": "a.png", "captions": ["one", "two"]}])
    assert record.captions == ("one", "two")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_label_split_and_image_id_are_taken_over(tmp_path, name):
    (record,) = read(
        tmp_path / name, [{"image": "a.png", "caption": "x", "label": 11003, "split": "Validation", "image_id": 7}]
    )
    assert (record.label, record.split, record.image_id) == (11003, "val", "7")


def test_labels_that_are_names_are_numbered_alphabetically(tmp_path):
    rows = [{"image": f"{name}.png", "caption": "x", "label": name} for name in ("dog", "ant", "cat", "10")]
    assert [record.label for record in read(tmp_path / "t.csv", rows)] == [3, 1, 2, 0]


def test_whole_numbers_that_parquet_holds_as_decimals_stay_whole(tmp_path):
    (record,) = read(tmp_path / "t.parquet", [{"image": "a.png", "caption": "x", "label": 3.0}])
    assert record.label == 3


def test_columns_of_other_names_can_be_named(tmp_path):
    rows = [{"datei": "a.png", "satz": "ein Hund"}]
    (record,) = read(tmp_path / "t.csv", rows, image_column="datei", caption_column="satz")
    assert record.captions == ("ein Hund",)


def test_what_spreadsheets_write_is_read(tmp_path):
    (record,) = read(tmp_path / "t.csv", "\ufeffimage;caption\r\na.png;A dog, running\r\n\r\n")
    assert record.captions == ("A dog, running",)


def test_a_caption_of_any_length_is_read(tmp_path):
    (record,) = read(tmp_path / "t.csv", [{"image": "a.png", "caption": "dog " * 100_000}])
    assert len(record.captions[0]) == 400_000


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.csv", "image,caption\na.png,A dog, running\n", r"line 2 has 3 fields, the header 2 \(quote"),
        ("t.csv", "file,caption\na.png,x\n", r"no column 'image' \(found file, caption\).*--image-column"),
        ("t.csv", "image,words\na.png,x\n", r"no column 'caption'.*--caption-column"),
        ("t.csv", "image,caption\n", "it has no rows"),
        ("t.csv", "", "it has no rows"),
        ("t.csv", "image,caption,caption\na,b,c\n", "two of its columns have the same name"),
        ("t.csv", "image,caption\n../a.png,x\n", r"line 2 leads out of the folder of pictures \('../a.png'\)"),
        ("t.csv", "image,caption\n/etc/passwd,x\n", "leads out of the folder"),
        ("t.csv", "image,caption\n,x\n", "line 2 has an empty 'image'"),
        ("t.csv", 'image,caption\na.png,"x\n', "can't be read .unexpected end of data"),
        ("t.csv", "image,caption,label\na.png,x,\n", "line 2 has nothing as 'label'; fill the column in every row"),
        (
            "t.csv",
            "image,caption,label\na.png,x,1\na.png,y,2\n",
            "3 gives 'a.png' the label '2', .* gave it '1'",
        ),
        ("t.csv", "image,caption,split\na.png,x,train\na.png,y,test\n", "the split 'test', .* gave it 'train'"),
        ("t.jsonl", "[]\n", "line 1 is a list, not an object"),
        ("t.jsonl", "{\n", "line 1 is not JSON"),
        ("t.jsonl", '{"image": 3, "caption": "x"}\n', "line 1 has a whole number as 'image', not a path"),
        ("t.jsonl", '{"image": "a", "caption": [1]}\n', "line 1 has a whole number as 'caption', not a caption"),
        ("t.jsonl", '{"image":"a","caption":"x"}\n{"image":"b","caption":"x","label":1}\n', "in some rows only"),
        ("t.parquet", "image,caption\n", "not Parquet, or damaged"),
        ("t.xlsx", "", "it is no table this can read; expected a .csv"),
    ],
)
def test_a_table_that_is_wrong_says_where(tmp_path, name, content, problem):
    with pytest.raises(UserError, match=problem) as caught:
        read(tmp_path / name, content)
    assert "\n" not in str(caught.value)


def test_a_table_or_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv does not exist; expected a \.csv"):
        read_table(tmp_path / "t.csv", tmp_path)
    with pytest.raises(UserError, match="expected --images to name the folder"):
        read_table(write(tmp_path / "t.csv", ROWS), tmp_path / "none")


def test_a_table_that_is_not_unicode_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"image,caption\na.png,caf\xe9\n")
    with pytest.raises(UserError, match="as UTF-8"):
        read_table(tmp_path / "t.csv", tmp_path)


@in_one_folder
@given(st.lists(st.tuples(st.sampled_from("abc"), TEXT), min_size=1, max_size=12), st.sampled_from(["csv", "jsonl"]))
def test_no_caption_is_lost_or_changed(tmp_path, rows, suffix):
    records = read(tmp_path / f"t.{suffix}", [{"image": image, "caption": caption} for image, caption in rows])
    expected: dict[str, list[str]] = {}
    for image, caption in rows:
        expected.setdefault(image, []).append(caption)
    assert {record.image_id: list(record.captions) for record in records} == expected


@in_one_folder
@given(st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "t.parquet"]), st.binary(max_size=80), st.integers(0, 10_000))
def test_a_damaged_table_is_a_sentence_or_records(tmp_path, name, noise, place):
    data = write(tmp_path / name, ROWS).read_bytes()
    place %= len(data)
    (tmp_path / name).write_bytes(data[:place] + noise + data[place + len(noise) // 2 :])
    with contextlib.suppress(UserError):
        assert all(record.captions for record in read_table(tmp_path / name, tmp_path))


def test_the_command_of_the_readme_makes_a_data_directory(tmp_path, encode, pixels, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    rows = []
    for number in range(20):
        Path("images", f"{number}.png").write_bytes(encode(pixels(30 + number, 40), "PNG"))
        rows += [{"image": f"{number}.png", "caption": f"{words} {number}"} for words in ("a dog", "a cat")]
    write(Path("captions.csv"), rows)
    places = ["--annotations", "captions.csv", "--images", "images"]
    arguments = ["prepare", "table", *places, "--processes", "1", "--output"]
    assert main([*arguments, "mine", "--split-shares", "0.8,0.1,0.1"]) == 0
    data = open_data("mine")
    assert {name: len(data.split(name)) for name in data.split_names} == {"train": 16, "val": 2, "test": 2}
    assert data.manifest.source["split_shares"] == "0.8,0.1,0.1"
    assert "20/20" in capsys.readouterr().err
    named = ["--image-column", "image", "--caption-column", "caption"]
    assert main([*arguments, "named", *named, "--split-shares", "0.8,0.1,0.1", "--seed", "1"]) == 0
    assert open_data("named").split("train").checksum != data.split("train").checksum
    capsys.readouterr()
    assert main([*arguments, "more"]) == 2
    assert "add --split-shares 0.8,0.1,0.1" in capsys.readouterr().err
    assert not Path("more").exists()
