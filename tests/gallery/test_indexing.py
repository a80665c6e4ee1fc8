"""`crosspair index`: what goes in, what a second run adds and removes, and what a killed one leaves."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crosspair.cli import main
from crosspair.encode import backends
from crosspair.encode.backends import TorchBackend
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.gallery import encoding, indexing, layout
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.indexing import IndexSummary, index_images
from tests.fixtures.paths import REPOSITORY

fork = multiprocessing.get_context("fork")  # of this process: importing torch anew for every run takes seconds


def save(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> None:
    """Noise by number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures, two of them the same."""
    for number in range(12):
        save(tmp_path / "in" / ("a" if number % 2 else "") / f"{number}.png", number % 11)
    return tmp_path / "in"


@pytest.fixture
def index(model_dir: Path, folder: Path, tmp_path: Path):
    def index(source: Path = folder, output: Path = tmp_path / "out", **options: object) -> IndexSummary:
        return index_images(model_dir, source, output, **{"progress": False, "threads": 2, **options})

    return index


def names(gallery: Gallery) -> list[str]:
    return gallery.items["item_id"]


def expect_equal_to_anew(index, output: Path, tmp_path: Path) -> None:
    """A renewed gallery is the one that a first run makes of the same pictures."""
    index(output=tmp_path / "anew")
    renewed, anew = Gallery.open(output), Gallery.open(tmp_path / "anew")
    assert [renewed.item(row) for row in range(len(renewed))] == [anew.item(row) for row in range(len(anew))]
    np.testing.assert_allclose(renewed.embeddings, anew.embeddings, atol=1e-5)
    thumbnails = [{path.name for path in one.path.glob("thumbnails/*/*")} for one in (renewed, anew)]
    assert thumbnails[0] == thumbnails[1] == {f"{sha256}.jpg" for sha256 in renewed.items["sha256"]}
    shutil.rmtree(tmp_path / "anew")


def test_a_folder_becomes_rows_in_the_order_of_names_with_the_models_vectors(index, folder, model_dir, tmp_path):
    summary = index()
    gallery = Gallery.open(tmp_path / "out")
    assert (summary.count, summary.encoded, summary.kept, summary.skipped) == (12, 12, 0, [])
    assert names(gallery) == sorted(names(gallery))
    expected = DualEncoder.from_pretrained(model_dir).encode_image([folder / name for name in names(gallery)])
    np.testing.assert_allclose(gallery.embeddings, expected.numpy(), atol=1e-5)
    assert gallery.item(0).width == 40
    assert gallery.image(3) == (folder / names(gallery)[3]).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "embeddings.npy",
        "gallery.json",
        "items.parquet",
        "thumbnails",
    ]


def test_a_second_run_encodes_only_what_is_new(index, folder, tmp_path, monkeypatch):
    index()
    assert index().kept == 12
    save(folder / "new.png", 50)
    save(folder / "2.png", 51)  # changed, under its old name
    (folder / "4.png").unlink()
    (folder / "6.png").rename(folder / "moved.png")
    summary = index()
    assert (summary.count, summary.encoded, summary.kept, summary.removed) == (12, 2, 10, 2)
    expect_equal_to_anew(index, tmp_path / "out", tmp_path)


def test_a_change_that_keeps_size_and_time_is_seen(index, folder, tmp_path):
    index()
    path = folder / "0.png"
    before = path.stat()
    Image.open(path).save(tmp_path / "other.bmp")
    data = bytearray(path.read_bytes())
    data[-20:-16] = b"\0\0\0\0"
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert index().kept == 11


def test_what_cannot_be_read_is_listed_with_its_reason(index, folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "empty.png").write_bytes(b"")
    (folder / "captions.txt").write_text("a dog")
    (folder / ".hidden.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "unnamed").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "outside").mkdir()
    save(tmp_path / "outside" / "secret.png", 90)
    (folder / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "again").symlink_to(folder / "a")
    os.mkfifo(folder / "pipe.jpg")
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.png")).write_bytes((folder / "0.png").read_bytes())
    summary = index()
    assert (summary.count, summary.other_files) == (13, {".txt": 1})
    reasons = {item.item_id.rsplit("/")[-1]: item.reason for item in Gallery.open(tmp_path / "out").manifest.skipped}
    assert "broken or cut off" in reasons["broken.jpg"]
    assert reasons["empty.png"] == "is empty"
    assert "leads out" in reasons["link.png"]
    assert "leads out" in reasons["linked"]
    assert "where they lie" in reasons["again"]
    assert "pipe" in reasons["pipe.jpg"]
    assert "not Unicode" in reasons["'bad\\udcff.png'"]
    assert len(reasons) == 7


def test_a_picture_of_too_many_pixels_is_not_decoded(index, folder, monkeypatch):
    from crosspair.data import images

    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    save(folder / "bomb.png", 1, (100, 100))
    assert [item.item_id for item in index().skipped] == ["bomb.png"]


def test_a_gallery_inside_its_folder_is_not_indexed_itself(index, folder):
    index(output=folder / "gallery")
    summary = index(output=folder / "gallery")
    assert (summary.count, [item.reason for item in summary.skipped]) == (12, ["is a gallery"])


def test_another_model_another_folder_and_a_foreign_directory_are_refused(index, model_dir, folder, tmp_path):
    index()
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    (other / "vocabulary.txt").write_text((other / "vocabulary.txt").read_text().replace("purple", "violet"))
    with pytest.raises(UserError, match="another model"):
        index_images(other, folder, tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="is a gallery of"):
        index(source=folder / "a")
    with pytest.raises(UserError, match=r"no gallery's"):
        index(output=folder)
    with pytest.raises(UserError, match="does not exist"):
        index(source=tmp_path / "nowhere")
    assert not (tmp_path / "elsewhere").exists()


def test_an_emptied_folder_leaves_the_gallery_as_it_was(index, folder, tmp_path):
    index()
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="found no picture"):
        index()
    assert len(Gallery.open(tmp_path / "out")) == 12
    with pytest.raises(UserError, match="found no picture"):
        index(output=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_gallery_is_not_built_upon(index, tmp_path):
    index()
    path = tmp_path / "out" / "embeddings.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"embeddings\.npy is damaged"):
        index()


def test_two_runs_on_one_gallery_refuse_each_other(index, tmp_path):
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    process = fork.Process(target=_hold, args=(tmp_path / "out" / ".partial",))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(UserError, match="another process is writing"):
            index()
    finally:
        process.kill()
        process.join()
    assert index().count == 12


def _hold(folder: Path) -> None:
    with indexing.claimed(folder, "it"):
        (folder.parent.parent / "held").touch()
        time.sleep(60)


class _StopError(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_is_gone_on_from(index, tmp_path, monkeypatch, capsys, after):
    groups = encoding.encode_images

    def stopping(*arguments, **options):
        for number, group in enumerate(groups(*arguments, **options)):
            if number == after:
                raise _StopError
            yield group

    with monkeypatch.context() as patch:
        patch.setattr(backends, "SAMPLE", 4)
        patch.setattr(indexing, "encode_images", stopping)
        patch.setattr(backends, "backends_for", lambda model, *_: [TorchBackend(model, "32-true", _no, 3)])
        with pytest.raises(_StopError):
            index()
    assert "the same command goes on" in capsys.readouterr().err
    with pytest.raises(UserError, match="interrupted"):
        Gallery.open(tmp_path / "out")
    summary = index()
    assert summary.taken_over == 3 * after
    assert summary.encoded + summary.taken_over in (11, 12)  # two pictures are the same
    expect_equal_to_anew(index, tmp_path / "out", tmp_path)


# Forks from a process that has imported everything but computed nothing: threads that compute don't outlive a fork.
KILLED = """
import shutil, sys
from contextlib import suppress
from pathlib import Path

with suppress(ImportError):  # optional
    import openvino
import timm
from crosspair.encode.model import DualEncoder
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.indexing import index_images
from tests.fixtures import killing

model, images, folder = map(Path, sys.argv[1:])
output = folder / "out"
kills, through = [], []


def index():
    index_images(model, images, output, progress=False, threads=2)


def put_aside(name):
    output.rename(folder / name)
    shutil.copytree(folder / "start", output)


def keep_through():
    put_aside(f"through {len(through)}")
    through.append(None)


def keep_killed():
    shutil.copytree(output, folder / f"killed {len(kills)}")
    kills.append(None)


killing.duration(index)
put_aside("warm")
duration = killing.duration(index)
put_aside("undisturbed")
killing.killed_at_random(index, duration, kills=12, killed=keep_killed, through=keep_through)
print(len(kills), len(through))
"""


@pytest.mark.slow
def test_killed_at_random_moments_the_gallery_is_always_the_old_or_the_new_one(index, folder, model_dir, tmp_path):
    index()
    old = names(Gallery.open(tmp_path / "out"))
    save(folder / "new.png", 60)
    (folder / "0.png").unlink()
    shutil.copytree(tmp_path / "out", tmp_path / "start")
    command = [sys.executable, "-c", KILLED, str(model_dir), str(folder), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    kills, through = map(int, done.stdout.split())
    assert kills == 12
    for number in range(kills):
        gallery = Gallery.open(tmp_path / f"killed {number}")
        gallery.verify()
        assert names(gallery) == old or "new.png" in names(gallery)
    for name in ("undisturbed", *(f"through {number}" for number in range(through))):
        expect_equal_to_anew(index, tmp_path / name, tmp_path)


@pytest.mark.parametrize("moved", range(4))
def test_a_move_cut_short_is_read_as_the_new_state_and_finished_by_the_next_run(index, folder, tmp_path, moved):
    index()
    output = tmp_path / "out"
    shutil.copytree(output, tmp_path / "old")
    save(folder / "new.png", 60)
    index()
    following = output / layout.MOVING
    following.mkdir()
    for number, name in enumerate(("embeddings.npy", "items.parquet", "gallery.json")):
        if number >= moved:
            (output / name).rename(following / name)
            shutil.copy(tmp_path / "old" / name, output / name)
    assert len(Gallery.open(output)) == 13
    Gallery.open(output).verify()
    assert index().kept == 13
    assert not following.exists()


def test_a_data_directory_brings_labels_and_captions(model_dir, folder, tmp_path, capsys):
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a dog\n2.png,a cat\n4.png,a bird\n6.png,a fish\n")
    for number in (8, 10):
        (folder / f"{number}.png").unlink()
    shutil.rmtree(folder / "a")
    data, output = str(tmp_path / "data"), str(tmp_path / "out")
    prepare = ["prepare", "folder", "--images", str(folder), "--output", data, "--split-shares", "0.5,0.25,0.25"]
    assert main([*prepare, "--processes", "1"]) == 0
    assert main(["index", str(model_dir), data, "--output", output, "--split", "train", "--split", "val"]) == 0
    gallery = Gallery.open(output)
    assert len(gallery) == 3
    item = gallery.item(0)
    assert item.split == "train"
    assert item.path is None
    assert item.captions in (["a dog"], ["a cat"], ["a bird"], ["a fish"])
    assert gallery.image(0)
    assert main(["index", str(model_dir), str(folder), "--output", str(tmp_path / "x"), "--split", "train"]) == 2
    assert "has no splits" in capsys.readouterr().err


def test_search_and_inspect_print_what_is_found(index, folder, tmp_path, capsys):
    index()
    output = str(tmp_path / "out")
    assert main(["search", output, str(folder / "2.png"), "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["1", "1.0000", str(folder / "2.png")]
    assert main(["search", output, "a red square", "--top", "99", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in found] == list(range(1, 13))
    assert main(["inspect", output]) == 0
    printed = capsys.readouterr().out
    assert "12 pictures, 8 dimensions, checksums match" in printed
    assert "11 different pictures" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--top", "3"], "expected a sentence with words"),
        (["zebra xylophone"], "knows none of the words"),
        (["gone.jpg"], "there is no picture gone.jpg"),
        (["a red square", "--top", "0"], "at least 1"),
    ],
)
def test_a_query_that_cannot_be_answered_is_one_sentence(index, tmp_path, capsys, arguments, message):
    index()
    assert main(["search", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def _no():
    from contextlib import nullcontext

    return nullcontext()


def test_a_large_gallery_gets_a_graph_and_loses_it_when_it_shrinks(index, folder, tmp_path, monkeypatch):
    from crosspair.gallery.engines import hnsw as approximate

    monkeypatch.setattr(approximate, "EXACT_UP_TO", 11)
    monkeypatch.setattr(approximate, "NEIGHBOURS", 3)
    assert index().index["kind"] == "hnsw"
    gallery = Gallery.open(tmp_path / "out")
    found = gallery.search(np.array(gallery.embeddings[:1]), 3)
    assert found.scores[0, 0] == pytest.approx(1, abs=1e-5)
    path = tmp_path / "out" / "index.faiss"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"index\.faiss is damaged"):
        Gallery.open(tmp_path / "out").search(np.array(gallery.embeddings[:1]), 3)
    path.write_bytes(whole)
    (folder / "0.png").unlink()
    assert index().index == {"kind": "exact"}
    assert not path.exists()
