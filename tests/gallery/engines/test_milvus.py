"""Galleries in a local Milvus file: the same answers, each picture once whatever is interrupted, and clear refusals."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crosspair.cli import main
from crosspair.errors import UserError
from crosspair.gallery.engines.exact import ExactEngine
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.indexing import index_images

pytest.importorskip("pymilvus", reason="the extra milvus is not installed")
pytest.importorskip("milvus_lite", reason="the extra milvus is not installed")

from crosspair.gallery.engines import milvus_client
from crosspair.gallery.engines.milvus import MilvusEngine
from crosspair.gallery.engines.milvus_client import Address, Collection, index_kind, release


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)).save(path)


@pytest.fixture
def address(tmp_path: Path):
    path = tmp_path / "vectors.db"
    yield str(path)
    release(str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures, two of them the same."""
    for number in range(10):
        save(tmp_path / "in" / f"{number}.png", number % 9)
    return tmp_path / "in"


@pytest.fixture
def index(model_dir: Path, folder: Path, tmp_path: Path, address: str):
    def index(**options: object):
        settings = {"progress": False, "engine": "milvus", "address": address, **options}
        return index_images(model_dir, folder, tmp_path / "out", **settings)

    return index


def open_gallery(tmp_path: Path) -> Gallery:
    return Gallery.open(tmp_path / "out")


def expect_exact_answers(gallery: Gallery) -> None:
    queries = gallery.model().encode_text(["a red square", "a blue square"]).numpy()
    scores, rows = ExactEngine(gallery.embeddings).search(queries, len(gallery))
    found = gallery.search(queries, 100)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(queries @ gallery.embeddings.T, found.rows, 1), scores, atol=1e-5)
    assert [sorted(row) for row in found.rows.tolist()] == [list(range(len(gallery)))] * 2
    assert rows.shape == found.rows.shape


def held(address: str, gallery: Gallery) -> list[str]:
    """The keys in the collection, as often as they are there."""
    collection = Collection(address, gallery.manifest.index["address"]["collection"], gallery.dimension)
    assert collection.exists()
    collection.load()
    return sorted(collection.keys())


def test_two_thousand_vectors_are_searched_as_exactly_as_by_a_matrix_product(address):
    vectors = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = [hashlib.sha256(vector.tobytes()).hexdigest() for vector in vectors]
    collection = Collection(address, "c", 32)
    collection.create(2000)
    collection.add(zip(keys, vectors, strict=True))
    collection.add(zip(keys[:700], vectors[:700], strict=True))
    assert collection.count() == 2000
    scores, rows = MilvusEngine(collection, keys).search(vectors[:20], 10)
    expected_scores, expected_rows = ExactEngine(vectors).search(vectors[:20], 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    assert scores.dtype == np.float32


def test_a_gallery_in_milvus_answers_like_one_on_this_machine_and_says_where_it_is(index, tmp_path, address, capsys):
    assert index().count == 10
    gallery = open_gallery(tmp_path)
    expect_exact_answers(gallery)
    assert gallery.manifest.engine == "milvus"
    assert len(held(address, gallery)) == 9
    release(address)
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "FLAT in Milvus" in capsys.readouterr().out
    assert main(["search", str(tmp_path / "out"), str(tmp_path / "in" / "3.png"), "--top", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["item_id"] == "3.png"


def test_what_is_new_is_added_and_what_is_gone_is_removed(index, folder, tmp_path, address):
    index()
    save(folder / "a.png", 50)
    (folder / "4.png").unlink()
    (folder / "9.png").unlink()  # the same as 0.png, which stays
    summary = index(engine=None, address=None)
    assert (summary.encoded, summary.removed) == (1, 2)
    gallery = open_gallery(tmp_path)
    assert held(address, gallery) == sorted(gallery.items["sha256"])
    expect_exact_answers(gallery)


class _StopError(BaseException):
    pass


@pytest.mark.parametrize("where", ["add", "remove"])
@pytest.mark.parametrize("first", [True, False])
def test_interrupted_anywhere_the_next_run_leaves_every_picture_once(
    index, folder, tmp_path, address, monkeypatch, where, first
):
    if not first:
        index()
        save(folder / "a.png", 50)
        (folder / "4.png").unlink()
    done = getattr(Collection, where)

    def stop(collection: Collection, items) -> None:
        done(collection, list(items)[:1])
        raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr(Collection, where, stop)
        with pytest.raises(_StopError):
            index()
    if not first or where == "remove":
        expect_exact_answers(open_gallery(tmp_path))  # the old state, or the new one
    release(address)
    index()
    gallery = open_gallery(tmp_path)
    assert held(address, gallery) == sorted(set(gallery.items["sha256"]))
    expect_exact_answers(gallery)


def test_a_collection_that_somebody_dropped_is_made_again(index, tmp_path, address):
    index()
    gallery = open_gallery(tmp_path)
    name = gallery.manifest.index["address"]["collection"]
    milvus_client.connect(address).drop_collection(name)
    with pytest.raises(UserError, match="there is no collection"):
        gallery.search(np.zeros((1, 8), np.float32))
    index()
    expect_exact_answers(open_gallery(tmp_path))


def test_pictures_that_are_left_over_take_no_place_in_an_answer(index, tmp_path, address):
    index()
    gallery = open_gallery(tmp_path)
    collection = Collection(address, gallery.manifest.index["address"]["collection"], 8)
    collection.add((hashlib.sha256(bytes([n])).hexdigest(), gallery.embeddings[0]) for n in range(50))
    found = gallery.search(gallery.embeddings[:1], 3)
    assert found.rows.shape == (1, 3)
    expect_exact_answers(gallery)
    collection.remove(gallery.items["sha256"][3:4])
    with pytest.raises(UserError, match="lacks pictures"):
        gallery.search(gallery.embeddings[:1], 10)


def test_a_moved_gallery_finds_its_file(index, tmp_path, address, monkeypatch):
    index()
    release(address)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("out", "in", "vectors.db"):
        (tmp_path / name).rename(moved / name)
    gallery = Gallery.open(moved / "out")
    assert gallery.search(gallery.embeddings[:1], 1).rows.tolist() == [[0]]
    release(str(moved / "vectors.db"))


def test_a_token_is_taken_from_the_environment_and_written_nowhere(index, tmp_path, monkeypatch):
    monkeypatch.setenv(milvus_client.TOKEN, "root:verysecret")
    index()
    assert "verysecret" not in (tmp_path / "out" / "gallery.json").read_text()
    with pytest.raises(UserError, match="holds a secret") as error:
        Address.parse("http://root:verysecret@host:19530", tmp_path, "c")
    assert "verysecret" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": None}, "needs --address"),
        ({"address": "http://127.0.0.1:1"}, "can't reach Milvus at http://127.0.0.1:1"),
        ({"address": "vectors.sqlite"}, "ends in .db"),
        ({"address": "ftp://host"}, "expected http://HOST:PORT"),
        ({"engine": "exact"}, "it is for --engine milvus"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_sentence_before_anything_is_encoded(index, tmp_path, options, message):
    with pytest.raises(UserError) as error:
        index(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_engine_another_address_and_another_dimension_are_refused(index, tmp_path, address):
    index()
    with pytest.raises(UserError, match="is searched by milvus"):
        index(engine="exact", address=None)
    with pytest.raises(UserError, match="leave --address out"):
        index(address=str(tmp_path / "other.db"))
    name = open_gallery(tmp_path).manifest.index["address"]["collection"]
    client = milvus_client.connect(address)
    client.drop_collection(name)
    Collection(address, name, 16).create(1)
    with pytest.raises(UserError, match="vectors of 16 numbers, the gallery of 8"):
        open_gallery(tmp_path).search(np.zeros((1, 8), np.float32))


def test_without_the_package_the_command_to_install_it_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UserError, match=r"pip install 'crosspair\[milvus\]'"):
        milvus_client.connect("http://127.0.0.1:1")


def test_the_index_is_chosen_by_size():
    sizes = [1000, 1_000_000, 10_000_000_000]
    assert [index_kind("http://milvus:19530", size)[0] for size in sizes] == ["FLAT", "HNSW", "DISKANN"]
    assert index_kind("a.db", 10**9)[0] == "FLAT"
