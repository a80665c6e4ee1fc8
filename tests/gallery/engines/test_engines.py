"""Search engines: exact, through faiss with measured recall, and one of a user's own."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crosspair.cli import main
from crosspair.errors import UserError
from crosspair.gallery.engines import exact as engines
from crosspair.gallery.engines import hnsw as approximate
from crosspair.gallery.engines.engine import Content, Request, open_renewal
from crosspair.gallery.engines.exact import ExactEngine
from crosspair.gallery.engines.hnsw import AutoEngine, HnswEngine, build_graph, calibrate, read_graph
from crosspair.gallery.gallery import Gallery
from crosspair.registry import ENGINES
from tests.fixtures.plugins import page_plugin


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Unit vectors in clusters: float32 [3000, 24]."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, 24))
    points = centres[generator.integers(0, 40, 3000)] + 0.5 * generator.standard_normal((3000, 24))
    points[7] = points[2000]
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exact_search_is_a_stable_sort_of_all_scores(data):
    """On whole numbers, whose products have no rounding: equal scores abound, and come in the order of rows."""
    items, queries, top = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 45)))
    values = st.integers(-2, 2).map(float)
    row = st.lists(values, min_size=3, max_size=3)
    vectors = np.array(data.draw(st.lists(row, min_size=items, max_size=items)), np.float32)
    asked = np.array(data.draw(st.lists(row, min_size=queries, max_size=queries)), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "BLOCK_SCORES", data.draw(st.sampled_from([1, 12, 1 << 20])))
        scores, rows = ExactEngine(vectors).search(asked, top)
    expected = asked @ vectors.T
    order = np.argsort(-expected, axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(expected, order, axis=1))


def test_the_graph_is_walked_as_far_as_the_recall_needs(vectors):
    index = build_graph(vectors)
    queries = [approximate._own(vectors)]
    breadth, recalls = calibrate(index, vectors, queries)
    assert recalls["images"] >= approximate.LEAST_RECALL
    exact = ExactEngine(vectors).search(vectors[:200], 10)[0]
    found = HnswEngine(index, vectors, breadth).search(vectors[:200], 10)[0]
    assert (found >= exact[:, -1:] - 1e-6).mean() >= 0.97


def test_what_the_graph_finds_is_scored_exactly_and_sorted(vectors):
    scores, rows = HnswEngine(build_graph(vectors), vectors, 64).search(vectors[:5], 4)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", vectors[:5], vectors[rows]), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert rows.dtype == np.int64


def test_more_than_a_walk_finds_is_compared_exactly(vectors):
    engine = HnswEngine(build_graph(vectors[:700]), vectors[:700], 16)
    scores, rows = engine.search(vectors[:2], 5000)
    assert scores.shape == (2, 700)
    assert sorted(rows[0]) == list(range(700))


@pytest.mark.parametrize("captions", [False, True])
def test_the_size_chooses_the_index_and_its_recall_is_kept(vectors, tmp_path, monkeypatch, captions):
    path = tmp_path / "index.faiss"
    assert AutoEngine.build(Content(tmp_path, vectors, path)) == {"kind": "exact"}
    assert not path.exists()
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 1000)
    content = Content(tmp_path, vectors, path, captions=lambda: vectors[:90] if captions else None)
    chosen = AutoEngine.build(content)
    assert chosen["kind"] == "hnsw"
    assert set(chosen["recall_at_10"]) == ({"images", "captions"} if captions else {"images"})
    assert min(chosen["recall_at_10"].values()) >= 0.98
    index = read_graph(path, 3000, 24)
    assert HnswEngine(index, vectors, chosen["breadth"]).search(vectors[7:8], 2)[1].tolist() == [[7, 2000]]


def test_where_no_walk_finds_enough_the_index_is_exact_and_says_why(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(approximate, "LEAST_RECALL", 1.01)
    chosen = AutoEngine.build(Content(tmp_path, vectors, tmp_path / "index.faiss"))
    assert chosen["kind"] == "exact"
    assert "of the ten nearest" in chosen["reason"]
    assert not (tmp_path / "index.faiss").exists()


@pytest.mark.parametrize(("count", "dimension"), [(2999, 24), (3000, 25)])
def test_the_index_of_another_gallery_is_refused(vectors, tmp_path, monkeypatch, count, dimension):
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 1000)
    path: Path = tmp_path / "index.faiss"
    AutoEngine.build(Content(tmp_path, vectors, path))
    with pytest.raises(UserError, match="another gallery"):
        read_graph(path, count, dimension)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        read_graph(path, 3000, 24)


def test_a_graph_is_made_of_any_size_where_it_is_asked_for(vectors, tmp_path):
    content = Content(tmp_path, vectors[:300], tmp_path / "index.faiss")
    facts = HnswEngine.build(content)
    assert facts["kind"] == "hnsw"
    found = HnswEngine.open(replace(content, facts=facts))
    assert isinstance(found, HnswEngine)
    assert found.search(vectors[7:8], 1)[1].tolist() == [[7]]
    assert "recall@10 measured on this gallery" in HnswEngine.describe(facts)


def test_without_faiss_a_graph_can_not_be_asked_for_and_a_gallery_that_has_one_is_searched_exactly(
    vectors, tmp_path, monkeypatch
):
    content = Content(tmp_path, vectors[:300], tmp_path / "index.faiss", {"kind": "hnsw", "breadth": 16})
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'crosspair\[search\]'"):
        open_renewal("hnsw", None, Request(tmp_path, tmp_path, 24))
    assert isinstance(HnswEngine.open(content), ExactEngine)
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 10)
    assert "faiss is not installed" in AutoEngine.build(content)["reason"]


def test_an_engine_of_a_users_own_indexes_and_searches(model_dir, tmp_path, monkeypatch, capsys):
    """And the gallery says so where the plugin is missing, and can be given another engine."""
    monkeypatch.setattr(ENGINES, "_entries", dict(ENGINES._entries))
    plugin = tmp_path / "my_engine.py"
    plugin.write_text(page_plugin("my_engine.py"))
    (tmp_path / "in").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    arguments = ["index", str(model_dir), str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--engine", "half-precision", "--plugin", str(plugin)]) == 0
    assert "index: half-precision" in capsys.readouterr().out
    gallery = Gallery.open(tmp_path / "out")
    assert gallery.manifest.index == {"kind": "half-precision"}
    found = gallery.search(np.array(gallery.embeddings), 5)
    expected = ExactEngine(gallery.embeddings).search(gallery.embeddings, 5)
    np.testing.assert_allclose(found.scores, expected[0], atol=2e-3)
    assert found.rows[:, 0].tolist() == list(range(5))
    monkeypatch.delitem(ENGINES._entries, "half-precision")
    with pytest.raises(UserError, match=r"no search engine 'half-precision'.*or a plugin named with --plugin"):
        Gallery.open(tmp_path / "out").search(np.array(gallery.embeddings), 1)
    assert main([*arguments, "--engine", "exact"]) == 0
    assert Gallery.open(tmp_path / "out").manifest.index == {"kind": "exact"}


def test_what_is_no_engine_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(ENGINES, "_entries", dict(ENGINES._entries))
    ENGINES.register("mine")(lambda vectors: None)
    with pytest.raises(UserError, match="'mine' is registered as function; expected a subclass of"):
        open_renewal("mine", None, Request(tmp_path, tmp_path, 8))
    with pytest.raises(UserError, match="no search engine 'faiss'"):
        open_renewal("faiss", None, Request(tmp_path, tmp_path, 8))
    with pytest.raises(UserError, match="it is for --engine milvus"):
        open_renewal("exact", None, Request(tmp_path, tmp_path, 8, address="http://host:1"))
