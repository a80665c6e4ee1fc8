"""A folder of pictures: captions beside them or in metadata, and no picture is passed over in silence."""

from pathlib import Path

import pytest

from crosspair.data.readers.folder import read_folder
from crosspair.data.records import Record
from crosspair.errors import UserError


def write(folder: Path, files: dict[str, str]) -> list[Record]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(read_folder(folder))


def test_each_line_beside_a_picture_is_a_caption(tmp_path):
    first, second = write(
        tmp_path, {"a b.JPG": "", "a b.txt": "A dog.\n\n Ein Hund. \n", "x/c.png": "", "x/c.txt": "Cat"}
    )
    assert (first.image_id, first.captions, first.label, first.split) == ("a b.JPG", ("A dog.", "Ein Hund."), 0, "")
    assert (second.image_id, second.captions, second.label) == ("x/c.png", ("Cat",), 1)
    assert second.image == tmp_path / "x" / "c.png"


def test_a_picture_without_captions_is_kept_for_the_account(tmp_path):
    assert [record.captions for record in write(tmp_path, {"a.jpg": "", "b.jpg": "", "b.txt": "B"})] == [(), ("B",)]


def test_folders_named_as_splits_are_splits(tmp_path):
    records = write(tmp_path, {"train/a.jpg": "", "validation/b.jpg": "", "test/c/d.jpg": ""})
    assert {record.image_id: record.split for record in records} == {
        "train/a.jpg": "train",
        "validation/b.jpg": "val",
        "test/c/d.jpg": "test",
    }
    assert {record.split for record in write(tmp_path, {"other/e.jpg": ""})} == {""}


def test_hidden_files_and_other_files_are_left_alone(tmp_path):
    records = write(tmp_path, {".a.jpg": "", ".git/b.jpg": "", "notes.md": "", "c.jpg": "", "c.txt": "C"})
    assert [record.image_id for record in records] == ["c.jpg"]


def test_metadata_as_of_imagefolder_name_pictures_and_texts(tmp_path):
    files = {
        "a.jpg": "",
        "b.jpg": "",
        "metadata.csv": 'file_name,text\nb.jpg,"A cat, asleep"\na.jpg,A dog\nb.jpg,Cat\n',
    }
    first, second = write(tmp_path, files)
    assert (first.image_id, first.captions) == ("b.jpg", ("A cat, asleep", "Cat"))
    assert (second.image_id, second.captions) == ("a.jpg", ("A dog",))


def test_metadata_in_folders_of_splits_share_their_labels(tmp_path):
    files = {
        "train/metadata.jsonl": '{"file_name": "a.jpg", "text": "A", "label": "dog"}\n',
        "test/metadata.jsonl": '{"file_name": "./a.jpg", "text": "B", "label": "cat"}\n',
        "train/a.jpg": "",
        "test/a.jpg": "",
    }
    records = {record.image_id: record for record in write(tmp_path, files)}
    assert {name: (record.split, record.label) for name, record in records.items()} == {
        "train/a.jpg": ("train", 1),
        "test/a.jpg": ("test", 0),
    }


def test_a_picture_that_no_metadata_name_is_kept_for_the_account(tmp_path):
    files = {"a.jpg": "", "b.jpg": "", "metadata.csv": "file_name,text\na.jpg,A dog\n"}
    named, unnamed = write(tmp_path, files)
    assert (unnamed.image_id, unnamed.captions, unnamed.label) == ("b.jpg", (), named.label + 1)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "holds no pictures; expected files that end in .bmp, .gif, .jpeg, .jpg"),
        ({"a.jpg": "", "metadata.csv": "", "metadata.jsonl": ""}, "metadata.csv and metadata.jsonl; keep one"),
        ({"a.jpg": "", "metadata.csv": "name,text\na.jpg,x\n"}, "no column 'file_name'"),
        ({"a.jpg": "", "metadata.csv": "file_name,text\n../b.jpg,x\n"}, "line 2 of metadata.csv leads out"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, problem):
    with pytest.raises(UserError, match=problem):
        write(tmp_path, files)


def test_captions_that_are_not_unicode_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt can't be read .*expected captions in UTF-8"):
        write(tmp_path, {"a.jpg": ""})
