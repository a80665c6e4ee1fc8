"""Finding the nearest vectors: exactly, and through faiss with measured recall."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.errors import UserError
from crosspair.gallery.engines import exact as engines
from crosspair.gallery.engines import hnsw as approximate
from crosspair.gallery.engines.exact import ExactEngine
from crosspair.gallery.engines.hnsw import FaissEngine, build_graph, calibrate, choose_index, read_graph


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
    found = FaissEngine(index, vectors, breadth).search(vectors[:200], 10)[0]
    assert (found >= exact[:, -1:] - 1e-6).mean() >= 0.97


def test_what_the_graph_finds_is_scored_exactly_and_sorted(vectors):
    scores, rows = FaissEngine(build_graph(vectors), vectors, 64).search(vectors[:5], 4)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", vectors[:5], vectors[rows]), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert rows.dtype == np.int64


def test_more_than_a_walk_finds_is_compared_exactly(vectors):
    engine = FaissEngine(build_graph(vectors[:700]), vectors[:700], 16)
    scores, rows = engine.search(vectors[:2], 5000)
    assert scores.shape == (2, 700)
    assert sorted(rows[0]) == list(range(700))


@pytest.mark.parametrize("captions", [False, True])
def test_the_size_chooses_the_index_and_its_recall_is_kept(vectors, tmp_path, monkeypatch, captions):
    path = tmp_path / "index.faiss"
    assert choose_index(path, vectors) == {"kind": "exact"}
    assert not path.exists()
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 1000)
    chosen = choose_index(path, vectors, vectors[:90] if captions else None)
    assert chosen["kind"] == "hnsw"
    assert set(chosen["recall_at_10"]) == ({"images", "captions"} if captions else {"images"})
    assert min(chosen["recall_at_10"].values()) >= 0.98
    index = read_graph(path, 3000, 24)
    assert FaissEngine(index, vectors, chosen["breadth"]).search(vectors[7:8], 2)[1].tolist() == [[7, 2000]]


def test_where_no_walk_finds_enough_the_index_is_exact_and_says_why(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(approximate, "LEAST_RECALL", 1.01)
    chosen = choose_index(tmp_path / "index.faiss", vectors)
    assert chosen["kind"] == "exact"
    assert "of the ten nearest" in chosen["reason"]
    assert not (tmp_path / "index.faiss").exists()


@pytest.mark.parametrize(("count", "dimension"), [(2999, 24), (3000, 25)])
def test_the_index_of_another_gallery_is_refused(vectors, tmp_path, monkeypatch, count, dimension):
    monkeypatch.setattr(approximate, "EXACT_UP_TO", 1000)
    path: Path = tmp_path / "index.faiss"
    choose_index(path, vectors)
    with pytest.raises(UserError, match="another gallery"):
        read_graph(path, count, dimension)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        read_graph(path, 3000, 24)
