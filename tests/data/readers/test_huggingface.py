"""A Hugging Face data set: what `save_to_disk` or a Parquet file holds comes through with its splits and labels."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from crosspair.data.readers.huggingface import read_huggingface
from crosspair.errors import UserError


def rows(encode, pixels, count: int = 2, **columns) -> Dataset:
    images = [{"bytes": encode(pixels(10 + number, 20), "PNG"), "path": None} for number in range(count)]
    captions = [[f"caption {number}", "another"] for number in range(count)]
    features = Features({"image": Image(), "captions": [Value("string")]})
    data = Dataset.from_dict({"image": images, "captions": captions}, features=features)
    for name, values in columns.items():
        data = data.add_column(name, values)
    return data


def read(path: Path, **columns: str):
    return list(read_huggingface(path, path, **columns))


def test_splits_saved_to_disk_keep_their_names(tmp_path, encode, pixels):
    splits = DatasetDict({"train": rows(encode, pixels, 2), "validation": rows(encode, pixels, 1)})
    splits.save_to_disk(tmp_path / "saved")
    first, second, third = read(tmp_path / "saved")
    assert [record.split for record in (first, second, third)] == ["train", "train", "val"]
    assert [record.label for record in (first, second, third)] == [0, 1, 2]
    assert [record.image_id for record in (first, second, third)] == ["train/0", "train/1", "validation/0"]
    assert first.captions == ("caption 0", "another")
    assert second.image == encode(pixels(11, 20), "PNG")


def test_one_split_alone_counts_as_none(tmp_path, encode, pixels):
    rows(encode, pixels).save_to_disk(tmp_path / "saved")
    assert {record.split for record in read(tmp_path / "saved")} == {""}


def test_a_parquet_file_is_read(tmp_path, encode, pixels, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows(encode, pixels).to_parquet(tmp_path / "rows.parquet")
    assert [record.captions[0] for record in read(tmp_path / "rows.parquet")] == ["caption 0", "caption 1"]


def test_columns_can_be_named(tmp_path, encode, pixels):
    data = rows(encode, pixels).rename_columns({"image": "foto", "captions": "saetze"})
    data.save_to_disk(tmp_path / "saved")
    assert len(read(tmp_path / "saved", image_column="foto", caption_column="saetze")) == 2
    with pytest.raises(UserError, match=r"no column 'image' \(found foto, saetze\); name it with --image-column"):
        read(tmp_path / "saved")


def test_labels_and_ids_are_taken_over(tmp_path, encode, pixels):
    data = rows(encode, pixels, label=[7, 9], image_id=["a", "b"])
    data.save_to_disk(tmp_path / "numbers")
    assert [(record.label, record.image_id) for record in read(tmp_path / "numbers")] == [(7, "a"), (9, "b")]
    data.cast_column("label", Value("string")).remove_columns("label").add_column("label", ["dog", "cat"]).save_to_disk(
        tmp_path / "names"
    )
    assert [record.label for record in read(tmp_path / "names")] == [1, 0]
    classes = rows(encode, pixels, label=[1, 0]).cast_column("label", ClassLabel(names=["cat", "dog"]))
    classes.save_to_disk(tmp_path / "classes")
    assert [record.label for record in read(tmp_path / "classes")] == [1, 0]


def test_the_captions_words_are_taken_over(tmp_path, encode, pixels):
    words = [[["caption", str(number)], ["another"]] for number in range(2)]
    rows(encode, pixels, tokens=words).save_to_disk(tmp_path / "saved")
    assert [record.tokens for record in read(tmp_path / "saved")] == [
        (("caption", str(number)), ("another",)) for number in range(2)
    ]
    splits = {"train": rows(encode, pixels, tokens=words), "test": rows(encode, pixels)}
    DatasetDict(splits).save_to_disk(tmp_path / "half")
    with pytest.raises(UserError, match="'tokens' is a column of train only; give it to every split, or to none"):
        read(tmp_path / "half")


def test_names_that_are_in_several_splits_are_one_label(tmp_path, encode, pixels):
    splits = {"train": rows(encode, pixels, label=["dog", "cat"]), "test": rows(encode, pixels, label=["dog", "emu"])}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert [record.label for record in read(tmp_path / "saved")] == [1, 0, 1, 2]


def test_a_column_of_paths_is_looked_up_in_the_folder(tmp_path):
    data = Dataset.from_dict({"image": ["a b.jpg"], "caption": ["A dog"]})
    data.save_to_disk(tmp_path / "saved")
    (record,) = read_huggingface(tmp_path / "saved", tmp_path / "images")
    assert record.image == tmp_path / "images" / "a b.jpg"
    Dataset.from_dict({"image": ["../a.jpg"], "caption": ["A dog"]}).save_to_disk(tmp_path / "outside")
    with pytest.raises(UserError, match="row 0 of train leads out of the folder"):
        list(read_huggingface(tmp_path / "outside", tmp_path))


def test_a_row_without_a_picture_is_named(tmp_path):
    features = Features({"image": Image(), "caption": Value("string")})
    Dataset.from_dict({"image": [None], "caption": ["A dog"]}, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="row 0 of train has null as 'image', not a picture"):
        read(tmp_path / "saved")


def test_what_is_no_data_set_is_named(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.parquet").write_text("no parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("folder", "broken.parquet"):
        with pytest.raises(UserError, match=r"can't be opened as a data set .*expected a folder that save_to_disk"):
            read(tmp_path / name)
