"""The decoded cache: the same pixels, within its budget, never stale, never half-written, shared by runs."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from crosspair.data import decoded
from crosspair.data.batching import BatchSource, Reading
from crosspair.data.decoded import decoded_images
from crosspair.data.images import decode_image
from crosspair.data.plans import plan_epoch
from crosspair.data.transforms import ImageInput

INPUT = ImageInput(24, 20)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path))
    return tmp_path / "decoded"


@pytest.fixture
def split(memory_split, encode, pixels):
    images = [encode(pixels(40 + number, 31 + number)) for number in range(9)]
    return memory_split([[f"number {number}"] for number in range(9)], np.arange(9), images)


def build(split, *, resized=True, budget_gb=1.0):
    return decoded_images(split, INPUT, resized=resized, budget_gb=budget_gb, progress=False)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


@pytest.mark.parametrize("smallest_crop", [1.0, 0.5])
def test_batches_are_the_same_with_and_without_the_cache(split, smallest_crop):
    kept = build(split, resized=smallest_crop == 1)
    how = {"batch_size": 4, "captions_per_image": 1, "covers": "images", "hflip": True, "seed": (0,)}
    for plan in plan_epoch([1] * 9, **how):
        seen = [
            BatchSource(split, Reading(lambda _: [2], INPUT, smallest_crop=smallest_crop, decoded=cache))[plan].images
            for cache in (None, kept)
        ]
        assert torch.equal(*seen)


def test_a_second_run_reads_what_the_first_decoded(split, monkeypatch):
    build(split)
    monkeypatch.setattr(decoded, "load_image", None)
    assert torch.equal(build(split)[3], INPUT.resize(decode_image(split.images[3])))


def test_other_pictures_or_another_size_are_decoded_anew(split, folder):
    build(split)
    build(split, resized=False)
    split.checksum = "changed"
    build(split)
    assert len(files(folder)) == 3


def test_a_file_of_another_length_is_made_anew(split, folder):
    build(split)
    (path,) = folder.glob("*.pixels")
    path.write_bytes(path.read_bytes()[:-17])
    assert torch.equal(build(split)[8], INPUT.resize(decode_image(split.images[8])))


def test_beyond_the_budget_nothing_is_kept_and_it_says_so(split, folder, caplog):
    needed = 9 * (3 * 24 * 20 + 16) / 1e9
    assert build(split, budget_gb=needed * 0.999) is None
    assert files(folder) == []
    assert "decoded_cache_gb" in caplog.text
    assert build(split, budget_gb=needed) is not None
    assert build(split, budget_gb=0) is None


def test_what_was_used_longest_ago_makes_room(split, folder):
    budget = 2.5 * 9 * (3 * 24 * 20 + 16) / 1e9
    for name in ("first", "second", "first", "third"):
        split.checksum = name
        build(split, budget_gb=budget)
        kept = {name: len(files(folder))}
    assert kept == {"third": 2}
    split.checksum = "first"
    before = files(folder)
    build(split, budget_gb=budget)
    assert files(folder) == before  # it was used after the second


def test_pictures_stay_readable_when_another_run_removes_their_file(split, folder):
    kept = build(split)
    for path in folder.glob("*.pixels"):
        path.unlink()
    assert torch.equal(kept[0], INPUT.resize(decode_image(split.images[0])))


def test_on_a_full_disk_training_decodes(split, folder, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert build(split) is None
    assert files(folder) == []
    assert "is full" in caplog.text


KILLED = """
import os, signal, sys
from crosspair.data import decoded
from crosspair.data.dataset import open_data
from crosspair.data.transforms import ImageInput
decoded.CHUNK = 2
load, seen = decoded.load_image, []
def decode(data, name):
    seen.append(name)
    return load(data, name) if len(seen) < 6 else os.kill(os.getpid(), signal.SIGKILL)
decoded.load_image = decode
split = open_data(sys.argv[1]).split("train")
decoded.decoded_images(split, ImageInput(24, 20), resized=True, budget_gb=1.0, progress=False)
"""


@pytest.mark.slow
def test_after_a_kill_midway_the_next_run_makes_it_whole(split, folder, karpathy, tmp_path):
    from crosspair.data.dataset import open_data
    from crosspair.data.prepare import prepare
    from crosspair.data.readers.karpathy import read_karpathy

    entries = [(f"{number}.jpg", "train") for number in range(9)]
    prepare(read_karpathy(*karpathy(entries)), tmp_path / "data", source={}, processes=1, progress=False)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "data")], check=False)
    assert killed.returncode == -9
    assert len(files(folder)) == 1
    assert not list(folder.glob("*.pixels"))
    train = open_data(tmp_path / "data").split("train")
    kept = build(train)
    assert [name.rpartition(".")[2] for name in files(folder)] == ["pixels"]
    assert torch.equal(kept[8], INPUT.resize(decode_image(train.image(8))))


def test_of_two_runs_at_once_one_decodes(split, monkeypatch):
    calls = []
    monkeypatch.setattr(decoded, "load_image", lambda data, name: (calls.append(name), decode_image(data))[1])
    threads = [threading.Thread(target=build, args=(split,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == sorted(split.image_ids)
