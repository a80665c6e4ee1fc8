"""Preparing: nothing vanishes, the result does not depend on the workers, and a failure leaves nothing behind."""

import contextlib
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from crosspair.cli import main
from crosspair.data import prepare as module
from crosspair.data.dataset import open_data
from crosspair.data.prepare import describe, prepare, prepare_format
from crosspair.data.records import Record
from crosspair.data.writer import DataWriter
from crosspair.errors import UserError

SOURCE = {"format": "test"}


@pytest.fixture
def record(encode):
    """A record of a small picture; its fields can be set."""

    def make(number: int = 0, **fields) -> Record:
        data = encode(np.full((8, 8, 3), number % 256, np.uint8), "PNG")
        values = {"image_id": f"{number}.png", "image": data, "label": number, "captions": ("a dog",)}
        return Record(**{**values, "split": "train", **fields})

    return make


def run(records, output: Path, **options):
    return prepare(records, output, source=SOURCE, progress=False, **{"processes": 1, **options})


def files(directory: Path) -> dict[str, str]:
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def checksum(directory: Path) -> str:
    return open_data(directory).split("train").checksum


class TestResult:
    def test_datasets_opens_it(self, karpathy, tmp_path):
        annotations, images = karpathy([("a.jpg", "train"), ("b.jpg", "val"), ("c.jpg", "train")])
        prepare_format("flickr8k", annotations, images, tmp_path / "data", processes=1)
        data = load_from_disk(str(tmp_path / "data"))
        assert {name: len(split) for name, split in data.items()} == {"train": 2, "val": 1}
        row = data["train"][1]
        assert isinstance(row["image"], Image.Image)
        assert row["image"].size == (60, 40)
        del row["image"]
        assert row == {
            "image_id": "c.jpg",
            "label": 2,
            "captions": ["a dog number 2 .", "it runs ."],
            "tokens": [["a", "dog", "number", "2"], ["it", "runs"]],
        }

    def test_records_without_tokens_have_no_such_column(self, record, tmp_path):
        run([record()], tmp_path / "data")
        assert load_from_disk(str(tmp_path / "data"))["train"].column_names == [
            "image",
            "image_id",
            "label",
            "captions",
        ]

    def test_splits_are_in_their_usual_order_and_rows_in_that_of_the_records(self, record, tmp_path):
        splits = ["other", "restval", "test", "val", "train"] * 3
        run([record(number, split=split) for number, split in enumerate(splits)], tmp_path / "data")
        data = open_data(tmp_path / "data")
        assert data.split_names == ["train", "val", "test", "restval", "other"]
        assert data.split("val").labels.tolist() == [3, 8, 13]

    def test_each_picture_is_stored_once_however_many_captions_it_has(self, record, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        captions = tuple(f"caption {number}" for number in range(50))
        run([record(image=file.getvalue(), captions=captions)], tmp_path / "data")
        stored = (tmp_path / "data" / "train" / "data-00000.arrow").stat().st_size
        assert stored < 1.5 * len(file.getvalue())

    def test_any_number_of_workers_writes_the_same_files(self, record, tmp_path):
        records = [record(number, split="val" if number % 5 else "train") for number in range(150)]
        records[20] = record(20, image=b"no picture")
        records[70] = record(70, captions=("...",))
        records[71] = record(71, image=b"")
        for processes in (1, 2, 3):
            run(records, tmp_path / str(processes), processes=processes, on_error="skip")
        assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")
        skipped = json.loads((tmp_path / "1" / "crosspair.json").read_text())["skipped"]
        assert [item["image_id"] for item in skipped] == ["20.png", "70.png", "71.png"]

    def test_the_manifest_says_what_is_in_it(self, record, tmp_path):
        run([record(0, label=5, captions=("a", "b")), record(1, label=5)], tmp_path / "data", size=100)
        manifest = json.loads((tmp_path / "data" / "crosspair.json").read_text())
        assert (manifest["format"], manifest["size"], manifest["source"]) == (1, 100, SOURCE)
        facts = manifest["splits"]["train"]
        assert (facts["images"], facts["captions"], facts["labels"]) == (2, 3, 1)

    @pytest.mark.parametrize(
        "change", [{"label": 9}, {"image_id": "x"}, {"captions": ("a cat",)}, {"captions": ("a dog", "a dog")}]
    )
    def test_the_checksum_changes_with_the_contents(self, record, tmp_path, change):
        run([record(0), record(1)], tmp_path / "a")
        run([record(0), record(1, **change)], tmp_path / "b")
        assert checksum(tmp_path / "a") != checksum(tmp_path / "b")

    def test_the_checksum_changes_with_the_pixels(self, record, encode, tmp_path):
        for shade in (1, 2):
            image = encode(np.full((8, 8, 3), shade, np.uint8), "BMP")  # the same number of bytes
            run([record(image=image)], tmp_path / str(shade), size=0)
        assert checksum(tmp_path / "1") != checksum(tmp_path / "2")

    def test_many_batches_are_one_split(self, record, tmp_path, monkeypatch):
        monkeypatch.setattr("crosspair.data.prepare.CHECKPOINT_RECORDS", 4)
        records = [record(number) for number in range(19)]
        run(records, tmp_path / "data")
        split = open_data(tmp_path / "data").split("train")
        assert [split.image(row) for row in range(len(split))] == [one.image for one in records]


class TestUnusableImages:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [(None, "is missing"), (b"", "is empty"), (b"Words.", "is not a picture"), (b"\xff\xd8\xff", "is ")],
    )
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_stop_names_the_file_and_the_way_on(self, karpathy, tmp_path, capsys, data, reason, workers):
        annotations, images = karpathy([("a.jpg", "train"), ("b.jpg", "train")])
        (images / "b.jpg").unlink() if data is None else (images / "b.jpg").write_bytes(data)
        arguments = ["prepare", "flickr8k", "--annotations", str(annotations), "--images", str(images)]
        assert main([*arguments, "--output", str(tmp_path / "data"), "--processes", workers]) == 2
        (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crosspair: ")]
        assert f"{images / 'b.jpg'} {reason}" in sentence
        assert "--on-error skip" in sentence
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.json", "images"]

    def test_skip_leaves_it_out_with_a_line(self, karpathy, tmp_path):
        annotations, images = karpathy([("a.jpg", "train"), ("b.jpg", "train"), ("c.jpg", "val")])
        (images / "b.jpg").unlink()
        (images / "c.jpg").write_text("Words.")
        text = prepare_format("coco", annotations, images, tmp_path / "data", processes=2, on_error="skip")
        assert "skipped: 2 pictures" in text
        assert "train: b.jpg is missing" in text
        assert "val: c.jpg is not a picture in a known format" in text
        assert json.loads((tmp_path / "data" / "crosspair.json").read_text())["skipped"] == [
            {"image_id": "b.jpg", "split": "train", "reason": "is missing"},
            {"image_id": "c.jpg", "split": "val", "reason": "is not a picture in a known format"},
        ]
        assert open_data(tmp_path / "data").split("train").image_ids == ["a.jpg"]

    @pytest.mark.parametrize("captions", [(), ("", ""), (" .\n",), ("\ud800 x",)])
    def test_a_picture_without_a_usable_caption_is_named(self, record, tmp_path, captions):
        with pytest.raises(UserError, match=r"^7\.png has no caption( that can be used \(number 1 of|;)"):
            run([record(7, captions=captions)], tmp_path / "data")
        assert not list(tmp_path.iterdir())

    def test_a_caption_of_100_mb_is_left_out_with_a_line(self, record, tmp_path):
        huge = record(1, captions=("dog " * 25_000_000,))
        summary = run([record(0), huge], tmp_path / "data", on_error="skip")
        (left_out,) = summary.skipped
        assert "number 1 of 1 has 100,000,000 characters; at most 10,000,000 are stored for a" in left_out.reason

    def test_captions_of_10_million_characters_together_are_too_many(self, record, tmp_path):
        long = record(1, captions=("dog " * 1_500_000, "cat " * 1_500_000))
        (left_out,) = run([record(0), long], tmp_path / "data", on_error="skip").skipped
        assert left_out.reason == "has captions of 12,000,000 characters; at most 10,000,000 are stored for a picture"

    def test_a_name_with_a_newline_fits_its_line(self, record, tmp_path):
        text = describe(run([record(0), record(1, image_id="a\nb", image=b"")], tmp_path / "data", on_error="skip"))
        assert "  train: 'a\\nb' is empty" in text

    def test_captions_in_any_script_are_kept(self, record, tmp_path):
        captions = ("犬が走る", "собака", "٣", "🐕 dog")
        run([record(captions=captions)], tmp_path / "data")
        assert open_data(tmp_path / "data").split("train").captions == [list(captions)]

    def test_nothing_left_is_an_error(self, record, tmp_path):
        with pytest.raises(UserError, match=r"all 2 pictures had to be skipped \(the first: 0\.png is empty\)"):
            run([record(0, image=b""), record(1, image=b"")], tmp_path / "data", on_error="skip")
        with pytest.raises(UserError, match="the source has no pictures"):
            run([], tmp_path / "data")
        assert not list(tmp_path.iterdir())


class TestContradictions:
    def test_a_picture_that_comes_twice_is_an_error_even_when_skipping(self, record, tmp_path):
        with pytest.raises(UserError, match=r"^0\.png comes twice"):
            run([record(0), record(0)], tmp_path / "data", on_error="skip")

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"label": 2**63}, "has label 9223372036854775808; expected a number of at most 64 bits"),
            ({"label": -(2**63) - 1}, "has label"),
            ({"split": "../up"}, r"is in split '\.\./up'"),
            ({"image_id": "\ud800.png"}, "a name that is not Unicode"),
        ],
    )
    def test_what_can_not_be_stored_is_an_error(self, record, tmp_path, fields, problem):
        with pytest.raises(UserError, match=problem):
            run([record(0, **fields)], tmp_path / "data")
        assert not list(tmp_path.iterdir())

    def test_the_largest_labels_are_kept(self, record, tmp_path):
        run([record(0, label=2**63 - 1), record(1, label=-(2**63))], tmp_path / "data")
        assert open_data(tmp_path / "data").split("train").labels.tolist() == [2**63 - 1, -(2**63)]

    def test_tokens_for_some_records_only_are_a_bug_of_the_reader(self, record, tmp_path):
        with pytest.raises(ValueError, match="every record of a source has tokens, or none"):
            run([record(0), record(1, tokens=(("a",),))], tmp_path / "data")

    @pytest.mark.parametrize("options", [{"size": -1}, {"processes": 0}, {"on_error": "ignore"}])
    def test_a_wrong_option_is_named(self, record, tmp_path, options):
        (name,) = options
        option = {"size": "--size", "processes": "--processes", "on_error": "--on-error"}[name]
        with pytest.raises(UserError, match=f"found {option}"):
            run([record()], tmp_path / "data", **options)

    def test_an_unknown_format_lists_the_known(self, tmp_path):
        with pytest.raises(
            UserError, match=r"no data format 'flickr' .*; expected one of coco, cub, cuhk-pedes, flickr30k"
        ):
            prepare_format("flickr", tmp_path, tmp_path, tmp_path / "data")


class TestNothingHalfWritten:
    def test_an_output_that_is_not_empty_is_refused_and_untouched(self, karpathy, tmp_path):
        annotations, images = karpathy([("a.jpg", "train")])
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "mine").write_text("kept")
        with pytest.raises(UserError, match="exists and is not empty"):
            prepare_format("flickr8k", annotations, images, tmp_path / "data")
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]

    def test_an_empty_output_is_used(self, record, tmp_path):
        (tmp_path / "data").mkdir()
        run([record()], tmp_path / "data")
        assert len(open_data(tmp_path / "data").split("train")) == 1

    def test_a_full_disk_is_one_sentence(self, record, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(DataWriter, "add", full)
        with pytest.raises(UserError, match=r"^the disk of .*data is full"):
            run([record()], tmp_path / "data")
        assert not list(tmp_path.iterdir())

    def test_a_source_that_fails_leaves_nothing(self, record, tmp_path):
        def failing():
            yield from (record(number) for number in range(100))
            raise RuntimeError("the source broke")

        with pytest.raises(RuntimeError, match="the source broke"):
            run(failing(), tmp_path / "data", processes=2)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_a_signal_in_the_middle_leaves_no_data_and_no_process(self, tmp_path, number):
        program = tmp_path / "endless.py"
        program.write_text(ENDLESS)
        output = tmp_path / "data"
        process = subprocess.Popen(
            [sys.executable, str(program), str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        try:
            process.wait(timeout=120)
            assert not output.exists()
            assert group_ends(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if number == signal.SIGINT:
            assert sorted(path.name for path in tmp_path.iterdir()) == [".data.partial", "endless.py"]


ENDLESS = """
import io, signal, sys
from pathlib import Path
from PIL import Image
from crosspair.data.prepare import prepare
from crosspair.data.records import Record

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script runs in the background

def records():
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    number = 0
    while True:
        if number == 600:
            print("under way", flush=True)
        yield Record(str(number), file.getvalue(), number, ("a dog",), "train")
        number += 1

prepare(records(), Path(sys.argv[1]), source={}, processes=2, progress=False)
"""


def group_ends(group: int, seconds: float = 60) -> bool:
    """Whether every process of a group has ended within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


class TestSummary:
    def test_it_counts_every_split_and_the_bytes(self, record, tmp_path):
        summary = run([record(0), record(1, split="val", captions=("a", "b"))], tmp_path / "data")
        text = describe(summary)
        assert [line.split()[:4] for line in text.splitlines()[1:3]] == [
            ["train", "1", "1", "1"],
            ["val", "1", "2", "1"],
        ]
        assert "2 pictures in" in text
        assert "skipped: nothing" in text
        assert text.endswith(f"data: {tmp_path / 'data'}")

    def test_of_many_skipped_pictures_the_first_are_shown(self, record, tmp_path):
        records = [record(0), *(record(number, image=b"") for number in range(1, 31))]
        text = describe(run(records, tmp_path / "data", on_error="skip"))
        assert "skipped: 30 pictures" in text
        assert "10.png is empty" in text
        assert "11.png" not in text
        assert "and 20 more, all listed in crosspair.json" in text

    def test_the_bar_is_on_stderr_and_can_be_left_out(self, record, tmp_path, capsys):
        run([record()], tmp_path / "a")
        assert capsys.readouterr() == ("", "")
        module.prepare([record()], tmp_path / "b", source=SOURCE, processes=1)
        out, err = capsys.readouterr()
        assert (out, "1/1" in err) == ("", True)
