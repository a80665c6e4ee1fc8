"""An opened DATA directory gives back what was prepared, in any process; another or a damaged one says so."""

import json
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from crosspair.cli import main
from crosspair.data.dataset import PreparedSplit, inspect_data, open_data
from crosspair.data.prepare import prepare
from crosspair.data.records import Record
from crosspair.errors import UserError

ARROW = "data-00000.arrow"


@pytest.fixture
def records(encode) -> list[Record]:
    def one(number: int) -> Record:
        image = encode(np.full((8 + number, 10, 3), number, np.uint8), "PNG")
        captions = tuple(f"caption {word}" for word in range(1 + number % 3))
        return Record(f"{number}.png", image, number // 2, captions, "val" if number % 4 == 0 else "train")

    return [one(number) for number in range(20)]


@pytest.fixture
def directory(records, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("crosspair.data.prepare.CHECKPOINT_RECORDS", 4)
    output = tmp_path / "data"
    prepare(
        [*records, Record("x", b"", 0, ("a dog",), "val")],
        output,
        source={"format": "test"},
        processes=1,
        on_error="skip",
        progress=False,
    )
    return output


def read_images(split: PreparedSplit) -> list[bytes]:
    return [split.image(index) for index in range(len(split))]


def test_a_split_gives_back_what_was_prepared(directory, records):
    split = open_data(directory).split("train")
    train = [record for record in records if record.split == "train"]
    assert len(split) == len(train) == 15
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == [record.label for record in train]
    assert split.image_ids == [record.image_id for record in train]
    assert split.captions == [list(record.captions) for record in train]
    assert read_images(split) == [record.image for record in train]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same_pictures(directory, method):
    split = open_data(directory).split("train")
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        assert pool.submit(read_images, split).result() == read_images(split)


def test_a_split_travels_as_its_path(directory):
    split = open_data(directory).split("train")
    assert len(pickle.dumps(split)) < 1000
    assert pickle.loads(pickle.dumps(split)).image_ids == split.image_ids


@pytest.mark.parametrize("index", [-1, 15, 100])
def test_a_row_that_is_not_there_is_an_index_error(directory, index):
    with pytest.raises(IndexError, match=f"image {index} of 15"):
        open_data(directory).split("train").image(index)


def test_a_split_that_is_not_there_names_those_that_are(directory):
    with pytest.raises(UserError, match=r"data has no split 'test'; it has train, val$"):
        open_data(directory).split("test")


@pytest.mark.parametrize(("shard", "batch"), [(100, 100), (100, 3), (3, 2)])
def test_labels_are_counted_over_all_shards_and_their_batches(records, tmp_path, monkeypatch, shard, batch):
    monkeypatch.setattr("crosspair.data.prepare.CHECKPOINT_RECORDS", shard)
    monkeypatch.setattr("crosspair.data.writer.BATCH_ROWS", batch)
    mixed = [replace(record, label=(7 * number) % 5, split="train") for number, record in enumerate(records)]
    summary = prepare(mixed, tmp_path / "mixed", source={"format": "test"}, processes=1, progress=False)
    assert summary.splits["train"].labels == 5


def test_data_without_val_say_how_it_is_drawn(tmp_path, records):
    train = [replace(record, split="train") for record in records]
    prepare(train, tmp_path / "train-only", source={"format": "test"}, processes=1, progress=False)
    with pytest.raises(UserError, match=r"has no split 'val'; it has train; prepare it .* --split-shares 0\.9,0\.1,0"):
        open_data(tmp_path / "train-only").split("val")


class TestWhatIsNoData:
    def test_a_path_without_data_says_what_to_name(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            UserError, match=r"none does not exist; expected a DATA directory, name .*crosspair prepare"
        ):
            open_data(tmp_path / "none")
        with pytest.raises(UserError, match=r"is not a DATA directory \(it has no crosspair\.json\)"):
            open_data(tmp_path)
        with pytest.raises(UserError, match=r"is not a DATA directory \(it is a file\)"):
            open_data(tmp_path / "file")

    @pytest.mark.parametrize(
        "content",
        ["", "{", "[]", "5", "{}", '{"format": 1}', '{"format": 1, "splits": 5}', '{"format": 1, "splits": {"a": {}}}'],
    )
    def test_a_damaged_manifest_says_so(self, directory, content):
        (directory / "crosspair.json").write_text(content)
        with pytest.raises(UserError, match=r"crosspair\.json is damaged .*prepare the data again") as caught:
            open_data(directory)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("split", "facts", "field"),
        [
            ("train", {"images": -1}, "splits.train.images"),
            ("train", {"checksum": None}, "splits.train.checksum"),
            ("train", {"bytes": 10**40}, "splits.train.bytes"),
            ("../elsewhere", {}, "../elsewhere"),
        ],
    )
    def test_a_wrong_field_of_the_manifest_is_named(self, directory, split, facts, field):
        path = directory / "crosspair.json"
        manifest = json.loads(path.read_text())
        manifest["splits"][split] = manifest["splits"]["train"] | facts
        path.write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=f"crosspair.json is damaged .*'{field}'.*prepare the data again"):
            open_data(directory)

    def test_a_newer_format_asks_for_a_newer_crosspair(self, directory):
        manifest = json.loads((directory / "crosspair.json").read_text())
        (directory / "crosspair.json").write_text(json.dumps({"format": 2, "crosspair": "3.0", "unknown": manifest}))
        with pytest.raises(
            UserError, match=r"has format 2, this crosspair reads formats up to 1; upgrade crosspair .*3\.0"
        ):
            open_data(directory)

    def test_a_split_cut_off_or_gone_says_so(self, directory):
        file = directory / "train" / ARROW
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"train is damaged \([\d,]+ bytes, expected [\d,]+\); copy or prepare"):
            open_data(directory).split("train")
        shutil.rmtree(directory / "train")
        with pytest.raises(UserError, match=r"train is damaged \(0 bytes"):
            open_data(directory).split("train")

    @pytest.mark.parametrize("start", [0, 100])
    def test_a_split_overwritten_says_so(self, directory, start):
        file = directory / "train" / ARROW
        data = bytearray(file.read_bytes())
        data[start : start + 300] = b"\x7f" * 300
        file.write_bytes(data)
        with pytest.raises(UserError, match="is damaged"):
            open_data(directory).split("train")

    def test_the_command_line_shows_one_sentence(self, tmp_path, capsys):
        assert main(["inspect", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"crosspair: {tmp_path} is not a DATA, RUN, MODEL or GALLERY directory")


def test_inspect_shows_counts_lengths_sizes_and_what_was_skipped(directory):
    text = inspect_data(directory)
    assert "format test" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("train", "val"))}
    assert rows["train"] == ["15", "30", "10", "1..3", "2..2", "10..10", "x", "9..27", "png"]
    assert rows["val"][0] == "5"
    assert "skipped: 1 pictures" in text
    assert "val: x is empty" in text
    assert len(text.splitlines()) < 25


def test_ids_of_captions_are_there_where_the_source_has_them(directory, records, tmp_path):
    assert open_data(directory).split("train").caption_ids is None
    numbered = [
        replace(one, caption_ids=tuple(range(number, number + len(one.captions)))) for number, one in enumerate(records)
    ]
    prepare(numbered, tmp_path / "numbered", source={}, processes=1, progress=False)
    split = open_data(tmp_path / "numbered").split("val")
    assert split.caption_ids == [list(one.caption_ids) for one in numbered if one.split == "val"]
    assert split.checksum != open_data(directory).split("val").checksum
    with pytest.raises(ValueError, match="either every record of a source has ids of its captions, or none"):
        prepare([records[0], numbered[1]], tmp_path / "mixed", source={}, processes=1, progress=False)
