"""Preparing that is killed, or meets a full disk, goes on from its checkpoints; two at once refuse each other."""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk

from crosspair.cli import main
from crosspair.data import prepare as module
from crosspair.data.prepare import Summary, describe, prepare
from crosspair.data.records import Record
from crosspair.data.writer import DataWriter
from crosspair.errors import UserError
from tests.fixtures import killing

fork = multiprocessing.get_context("fork")  # of this process: importing torch anew for every run takes seconds


@pytest.fixture(autouse=True)
def frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_RECORDS", 8)


@pytest.fixture
def records(tmp_path: Path, encode: Callable[..., bytes]) -> list[Record]:
    """240 pictures in three splits: files and bytes, to be encoded anew and not, one of them unusable, two the same."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    made = []
    for number in range(240):
        size = (40, 50, 3) if number % 3 else (20, 30, 3)
        data = encode(np.full(size, generator.integers(0, 256, 3), np.uint8))
        image: Path | bytes = data
        if number % 2:
            image = folder / f"{number}.jpg"
            image.write_bytes(data)
        split = ("train", "train", "val", "test")[number % 4]
        made.append(Record(f"{number}.jpg", image, number // 2, ("a dog", f"it is {number}"), split))
    made[100] = replace(made[100], image=b"no picture")
    made[200] = replace(made[200], image=made[0].image)
    return made


def run(records: list[Record] | Iterator[Record], output: Path, **options: object) -> Summary:
    settings = {"size": 24, "processes": 2, "on_error": "skip", "progress": False, **options}
    return prepare(records, output, source={"format": "test"}, **settings)


def files(directory: Path) -> dict[str, str]:
    found = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def interrupted(records: list[Record], output: Path, after: int, **options: object) -> None:
    """A run that ends, with an error, after so many records."""

    def source() -> Iterator[Record]:
        yield from records[:after]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source(), output, **options)


@pytest.mark.slow
def test_killed_at_20_random_moments_it_ends_with_the_bytes_of_an_undisturbed_run(records, tmp_path):
    run(records[:8], tmp_path / "warm")  # what is imported at first is here before the clock starts
    seconds = killing.duration(lambda: run(records, tmp_path / "whole"))
    expected = files(tmp_path / "whole")
    output = tmp_path / "data"

    def compare() -> None:
        if output.exists():
            assert files(output) == expected
            shutil.rmtree(output)

    killing.killed_at_random(lambda: run(records, output), 1.1 * seconds, kills=20, killed=compare, through=compare)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "warm", "whole"]


@pytest.mark.parametrize("after", [1, 8, 9, 110, 239])
def test_what_was_whole_is_not_converted_again(records, tmp_path, after, capsys):
    expected = run(records, tmp_path / "whole")
    interrupted(records, tmp_path / "data", after)
    summary = run(records, tmp_path / "data")
    assert files(tmp_path / "data") == files(tmp_path / "whole")
    assert after - 80 < summary.taken_over <= after  # those under way in the processes are lost
    assert replace(summary, seconds=0, taken_over=0, output=Path()) == replace(expected, seconds=0, output=Path())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "images", "whole"]
    if summary.taken_over:
        assert f"kept {summary.taken_over} pictures in {tmp_path}/.data.partial" in capsys.readouterr().err
        assert f"{summary.taken_over} of them were converted by an earlier run" in describe(summary)


def test_from_a_picture_that_has_changed_on_it_is_converted_anew(records, encode, tmp_path):
    interrupted(records, tmp_path / "data", 120)
    assert isinstance(records[41].image, Path)
    records[41].image.write_bytes(encode(np.zeros((30, 30, 3), np.uint8)))
    assert run(records, tmp_path / "data").taken_over == 40
    run(records, tmp_path / "whole")
    assert files(tmp_path / "data") == files(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"label": 7}, {"captions": ("a cat",)}, {"split": "val"}, {"image_id": "x"}])
def test_from_a_record_that_has_changed_on_it_is_converted_anew(records, tmp_path, change):
    interrupted(records, tmp_path / "data", 120)
    records[40] = replace(records[40], **change)
    assert run(records, tmp_path / "data").taken_over == 40
    run(records, tmp_path / "whole")
    assert files(tmp_path / "data") == files(tmp_path / "whole")


def test_other_settings_begin_anew(records, tmp_path):
    interrupted(records, tmp_path / "data", 120)
    assert run(records, tmp_path / "data", size=32).taken_over == 0
    run(records, tmp_path / "whole", size=32)
    assert files(tmp_path / "data") == files(tmp_path / "whole")


def test_a_skipped_picture_stops_the_run_that_does_not_skip(records, tmp_path):
    interrupted(records, tmp_path / "data", 120)
    with pytest.raises(UserError, match=r"^100\.jpg is not a picture"):
        run(records, tmp_path / "data", on_error="stop")
    assert run(records, tmp_path / "data").taken_over == 96


@pytest.mark.parametrize("name", ["data/train/data-00004.arrow", "data/val/data-00007.arrow"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_what_a_crash_of_the_machine_damaged_is_converted_anew(records, tmp_path, name, damage):
    interrupted(records, tmp_path / "data", 120)
    path = tmp_path / ".data.partial" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    assert run(records, tmp_path / "data").taken_over == 8 * int(path.stem.removeprefix("data-"))
    run(records, tmp_path / "whole")
    assert files(tmp_path / "data") == files(tmp_path / "whole")


@pytest.mark.parametrize("cut", [1, 50, None])
def test_checkpoints_are_believed_up_to_one_that_is_damaged_or_gone(records, tmp_path, cut):
    interrupted(records, tmp_path / "data", 120)
    path = tmp_path / ".data.partial" / "checkpoints" / "00006.json"
    if cut is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-cut])
    assert run(records, tmp_path / "data").taken_over == 48
    run(records, tmp_path / "whole")
    assert files(tmp_path / "data") == files(tmp_path / "whole")


def test_two_at_once_on_one_output_refuse_each_other(records, tmp_path, karpathy, capsys):
    started, go_on = fork.Event(), fork.Event()

    def source() -> Iterator[Record]:
        yield from records[:100]
        started.set()
        go_on.wait()
        yield from records[100:]

    first = fork.Process(target=lambda: run(source(), tmp_path / "data"))
    first.start()
    started.wait()
    annotations, images = karpathy([("a.jpg", "train")])
    arguments = ["prepare", "coco", "--annotations", str(annotations), "--images", str(images), "--output"]
    assert main([*arguments, str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err == (
        f"crosspair: another process is writing the data in {tmp_path}/data; wait for it, or name another --output\n"
    )
    go_on.set()
    first.join()
    assert first.exitcode == 0
    run(records, tmp_path / "whole")
    assert files(tmp_path / "data") == files(tmp_path / "whole")


def test_every_shard_of_an_interrupted_run_is_listed_once_and_datasets_opens_them_in_order(records, tmp_path):
    interrupted(records, tmp_path / "data", 120)
    run(records, tmp_path / "data")
    for name, split in load_from_disk(str(tmp_path / "data")).items():
        expected = [record.image_id for record in records if record.split == name and record.image_id != "100.jpg"]
        assert split["image_id"] == expected
        listed = json.loads((tmp_path / "data" / name / "state.json").read_text())["_data_files"]
        present = sorted(path.name for path in (tmp_path / "data" / name).glob("*.arrow"))
        assert [one["filename"] for one in listed] == present
        assert len(present) == 30


def test_a_full_disk_is_one_sentence_and_the_work_is_kept(records, tmp_path, monkeypatch):
    checkpoint, written = DataWriter.checkpoint, 0

    def full(writer):
        nonlocal written
        written += 1
        if written == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return checkpoint(writer)

    with monkeypatch.context() as patch:
        patch.setattr(DataWriter, "checkpoint", full)
        with pytest.raises(UserError, match=r"^the disk of .*data is full .* free some space and run again$"):
            run(records, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert run(records, tmp_path / "data").taken_over == 32


def test_a_file_that_may_not_grow_is_one_sentence(records, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_CHECKPOINT_RECORDS", 8)
    monkeypatch.setattr(module, "CHECKPOINT_RECORDS", 4096)  # from 8 on, twice as many each time
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a file of .*data would be larger than .* \(ulimit -f\) allows"):
            run(records, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "data").exists()
    assert run(records, tmp_path / "data").taken_over > 0


def test_what_killed_runs_left_is_removed_and_that_of_living_ones_is_not(records, tmp_path):
    dead = fork.Process(target=int)
    dead.start()
    dead.join()
    for name in (f".data.{dead.pid}", f".data.{os.getpid()}", f".data2.{dead.pid}", ".data.notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    run(records[:1], tmp_path / "data")
    left = sorted(path.name for path in tmp_path.glob(".*"))
    assert left == sorted([f".data.{os.getpid()}", f".data2.{dead.pid}", ".data.notes"])


def test_killed_after_its_data_got_their_name_a_run_leaves_no_folder_for_long(records, tmp_path):
    run(records[:9], tmp_path / "data")
    (tmp_path / ".data.partial" / "checkpoints").mkdir(parents=True)
    (tmp_path / ".data.partial" / "checkpoints" / "00000.json").write_text("{}")
    with pytest.raises(UserError, match="exists and is not empty"):
        run(records, tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "images"]
