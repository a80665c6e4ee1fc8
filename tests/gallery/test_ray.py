"""Encoding by Ray Data on two workers: the gallery that one machine makes, whoever dies in between."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crosspair.errors import UserError
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.indexing import IndexSummary, index_images

pytest.importorskip("ray", reason="the extra ray is not installed")

import ray

from crosspair.gallery import ray as distributed

pytestmark = pytest.mark.slow  # a cluster takes some ten seconds to start


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def cluster():
    """Of this machine: two workers. It takes some ten seconds to start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100_000_000,
    )
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 pictures, two of them the same, one broken, and a file that is none: seven parts of four."""
    for number in range(23):
        save(tmp_path / "in" / ("a" if number % 2 else "") / f"{number}.png", number % 22)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


@pytest.fixture
def index(cluster: None, model_dir: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "PART", 4)

    def index(output: Path = tmp_path / "out", **options: object) -> IndexSummary:
        settings = {"progress": False, "ray_workers": 2, "distributed": "ray", **options}
        return index_images(model_dir, folder, output, **settings)

    return index


def expect_as_on_one_machine(index, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "anew", ignore_errors=True)
    index(output=tmp_path / "anew", distributed=None)
    made, anew = Gallery.open(tmp_path / "out"), Gallery.open(tmp_path / "anew")
    made.verify()
    assert [made.item(row) for row in range(len(made))] == [anew.item(row) for row in range(len(anew))]
    np.testing.assert_allclose(made.embeddings, anew.embeddings, atol=1e-5)
    assert made.manifest.skipped == anew.manifest.skipped
    assert made.manifest.other_files == anew.manifest.other_files
    thumbnails = [{path.name for path in one.path.glob("thumbnails/*/*")} for one in (made, anew)]
    assert thumbnails[0] == thumbnails[1]
    assert not (tmp_path / "out" / ".partial").exists()


def test_two_workers_of_which_one_dies_in_the_middle_make_the_gallery_that_one_machine_makes(
    index, tmp_path, monkeypatch
):
    died = tmp_path / "died"

    class DiesOnce(distributed.PartEncoder):
        def __call__(self, row):
            done = super().__call__(row)  # the part's file is there, but nobody hears of it
            if '"first": 8,' in row["part"] and not died.exists():
                died.touch()
                os._exit(1)
            return done

    monkeypatch.setattr(distributed, "PartEncoder", DiesOnce)
    summary = index()
    assert died.exists()
    assert (summary.count, summary.encoded, len(summary.skipped)) == (23, 23, 1)
    expect_as_on_one_machine(index, tmp_path)


def test_a_part_that_kills_every_worker_ends_the_run_and_names_its_pictures(index, tmp_path, monkeypatch):
    class Dies(distributed.PartEncoder):
        def __init__(self, job):
            super().__init__(job)
            distributed.TRIES = 2  # both in the worker's process
            distributed.write_part = lambda job, part, model: os._exit(1)

    monkeypatch.setattr(distributed, "PartEncoder", Dies)
    monkeypatch.setattr(distributed, "PART", 100)
    with pytest.raises(UserError, match=r"2 workers died at pictures 1 to 25, from 0\.png on"):
        index(ray_workers=1)


class _StopError(BaseException):
    pass


def test_an_interrupted_renewal_is_gone_on_from_with_the_parts_that_are_still_true(
    index, folder, tmp_path, monkeypatch
):
    for name in ("1.png", "3.png"):
        (folder / "a" / name).rename(tmp_path / name)
    index(distributed=None)
    for name in ("1.png", "3.png"):
        (tmp_path / name).rename(folder / "a" / name)
    for number in range(60, 68):
        save(folder / f"{number}.png", number)
    read = distributed.read_part
    parts = []

    def stop(*arguments, **options):
        parts.append(read(*arguments, **options))
        if len(parts) == 3:
            raise _StopError
        return parts[-1]

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "read_part", stop)
        with pytest.raises(_StopError):
            index()
    whole = list((tmp_path / "out" / ".partial" / "parts").glob("*.parquet"))
    assert len(whole) >= 3
    changed = folder / "0.png"
    save(changed, 70)  # its part is no longer of the same pictures
    summary = index()
    assert summary.encoded + summary.taken_over in (11, 12)  # ten new ones, one changed, whose part may be encoded anew
    assert summary.kept == 20
    expect_as_on_one_machine(index, tmp_path)


def test_what_a_worker_complains_of_is_one_sentence(index, tmp_path, monkeypatch):
    class Blind(distributed.PartEncoder):
        def __init__(self, job):
            super().__init__({**job, "source": "/nowhere"})

    monkeypatch.setattr(distributed, "PartEncoder", Blind)
    with pytest.raises(UserError) as error:
        index()
    assert "does not see /nowhere; put it on a disk that all machines share" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_directory_is_encoded_by_workers_too(index, cluster, model_dir, folder, tmp_path):
    from crosspair.cli import main

    (folder / "broken.jpg").unlink()
    (folder / "notes.txt").unlink()
    shutil.rmtree(folder / "a")
    rows = "".join(f"{path.name},a picture\n" for path in sorted(folder.glob("*.png")))
    (folder / "metadata.csv").write_text(f"file_name,text\n{rows}")
    data = tmp_path / "data"
    prepare = ["prepare", "folder", "--images", str(folder), "--output", str(data), "--split-shares", "0.5,0.25,0.25"]
    assert main([*prepare, "--processes", "1"]) == 0
    by_ray = index_images(model_dir, data, tmp_path / "one", distributed="ray", ray_workers=2, progress=False)
    alone = index_images(model_dir, data, tmp_path / "two", progress=False)
    assert by_ray.count == alone.count == 12
    made, expected = Gallery.open(tmp_path / "one"), Gallery.open(tmp_path / "two")
    assert [made.item(row) for row in range(12)] == [expected.item(row) for row in range(12)]
    np.testing.assert_allclose(made.embeddings, expected.embeddings, atol=1e-5)


def test_a_cluster_that_nobody_answers_at_is_one_sentence_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"can't reach a Ray cluster at 127\.0\.0\.1:1"), distributed.connected():
        pass


def test_without_the_package_the_command_to_install_it_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'crosspair\[ray\]'"), distributed.connected():
        pass
