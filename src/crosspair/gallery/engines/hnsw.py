"""Approximate search of a large gallery: a graph of near neighbours (HNSW, Malkov and Yashunin 2018) by faiss.

Without an engine's name every vector is compared up to EXACT_UP_TO images, which is faster than one can see and finds
everything. Beyond it a search walks the graph with a list of `breadth` candidates: the least breadth is kept that finds
LEAST_RECALL of the ten true nearest, measured on the gallery's own images and, where it has them, on its captions.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from crosspair.errors import UserError
from crosspair.gallery.engines.engine import Content, Engine, Renewal, Request
from crosspair.gallery.engines.exact import ExactEngine
from crosspair.registry import register_engine

EXACT_UP_TO = 50_000  # images
LEAST_RECALL = 0.98  # of the ten nearest, for each kind of query
LINKS = 32  # of a vector in the graph
BUILD_BREADTH = 80
BREADTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
QUERIES = 500  # of each kind, at most
NEIGHBOURS = 10


@register_engine("hnsw")
class HnswEngine(Engine):
    """A graph of near neighbours is walked by faiss; what the walk finds is scored exactly."""

    def __init__(self, index: Any, vectors: np.ndarray, breadth: int) -> None:
        self._index = index
        self._vectors = vectors
        self.breadth = breadth

    @classmethod
    def open(cls, content: Content) -> Engine:
        if find_spec("faiss") is None:  # on another machine than that which indexed: slower, and as good
            return ExactEngine(content.embeddings)
        graph = read_graph(content.file, *content.embeddings.shape)
        return cls(graph, content.embeddings, int(content.facts["breadth"]))

    @classmethod
    def renew(cls, request: Request) -> Renewal:
        if find_spec("faiss") is None and cls is HnswEngine:
            raise UserError("the engine hnsw needs the package faiss; run: pip install 'crosspair[search]'")
        return super().renew(request)

    @classmethod
    def build(cls, content: Content) -> dict[str, Any]:
        return build_index(content.file, content.embeddings, content.captions(), least_recall=0.0)

    @classmethod
    def describe(cls, facts: dict[str, Any]) -> str:
        recalls = ", ".join(f"{100 * recall:.1f} % for {kind}" for kind, recall in facts["recall_at_10"].items())
        return (
            f"hnsw, {facts['links']} links a picture, {facts['breadth']:,} candidates; "
            f"recall@10 measured on this gallery: {recalls} ({facts['queries']:,} queries)"
        )

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """queries float32 [q, d] -> scores float32 [q, min(top, n)] and rows int64, best first."""
        import faiss

        wanted = min(top, len(self._vectors))
        if wanted > BREADTHS[-1]:  # a walk so long is no faster than looking at everything
            return ExactEngine(self._vectors).search(queries, top)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        breadth = max(self.breadth, 2 * wanted)
        walk = faiss.SearchParametersHNSW(efSearch=breadth)  # type: ignore[attr-defined]
        _, rows = self._index.search(queries, wanted, params=walk)
        missed = (rows < 0).any(axis=1)  # parts of the graph that nothing leads to
        if missed.any():
            rows[missed] = ExactEngine(self._vectors).search(queries[missed], wanted)[1]
        scores = np.empty(rows.shape, np.float32)
        arrays = (faiss.swig_ptr(array) for array in (scores, queries, self._vectors, rows))
        rescore: Any = faiss.fvec_inner_products_by_idx  # type: ignore[attr-defined]
        rescore(*arrays, queries.shape[1], *rows.shape)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


@dataclass(frozen=True)
class Queries:
    """Queries to measure recall with. own_rows: of queries that are images of the gallery and must not count."""

    kind: str
    vectors: np.ndarray  # float32 [q, d]
    own_rows: np.ndarray | None = None


@register_engine("auto")
class AutoEngine(HnswEngine):
    """Exact up to 50,000 images; beyond, a graph if it finds 98 % of the ten nearest."""

    @classmethod
    def build(cls, content: Content) -> dict[str, Any]:
        if len(content.embeddings) <= EXACT_UP_TO:
            return {"kind": "exact"}
        if find_spec("faiss") is None:
            return {"kind": "exact", "reason": "faiss is not installed; pip install 'crosspair[search]'"}
        return build_index(content.file, content.embeddings, content.captions(), least_recall=LEAST_RECALL)


def build_index(path: Path, vectors: np.ndarray, captions: np.ndarray | None, least_recall: float) -> dict[str, Any]:
    """Write a graph of the vectors to `path`; what gallery.json says of it.

    vectors float32 [n, d]; captions float32 [m, d]: some that belong to the images; all of unit length. A graph that
    finds less than `least_recall` of the ten nearest is not written, and the search is exact.
    """
    import faiss

    index = build_graph(vectors)
    queries = [_own(vectors), *([Queries("captions", captions[:QUERIES])] if captions is not None else [])]
    breadth, recalls = calibrate(index, vectors, queries)
    if min(recalls.values()) < least_recall:
        return {"kind": "exact", "reason": f"the graph finds {100 * min(recalls.values()):.1f} % of the ten nearest"}
    faiss.write_index(index, str(path))
    counted = sum(len(one.vectors) for one in queries)
    return {"kind": "hnsw", "links": LINKS, "breadth": breadth, "recall_at_10": recalls, "queries": counted}


def build_graph(vectors: np.ndarray) -> Any:
    """A faiss index over vectors float32 [n, d], kept in half precision; scores are computed from the originals."""
    import faiss

    index: Any = faiss.index_factory(vectors.shape[1], f"HNSW{LINKS},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_BREADTH
    index.train(vectors[:1])
    index.add(np.ascontiguousarray(vectors))
    return index


def calibrate(index: Any, vectors: np.ndarray, queries: list[Queries]) -> tuple[int, dict[str, float]]:
    """The least breadth whose recall@10 is at least LEAST_RECALL for each kind, or the largest; the recalls there."""
    exact = ExactEngine(vectors)
    truths = [_without_own(*exact.search(one.vectors, NEIGHBOURS + 1), one) for one in queries]
    recalls: dict[str, float] = {}
    for breadth in BREADTHS:
        engine = HnswEngine(index, vectors, breadth)
        for one, (best, _) in zip(queries, truths, strict=True):
            scores, _ = _without_own(*engine.search(one.vectors, NEIGHBOURS + 1), one)
            # By score, so that of two images alike either counts.
            recalls[one.kind] = round(float((scores >= best[:, -1:] - 1e-6).mean()), 4)
        if min(recalls.values()) >= LEAST_RECALL:
            return breadth, recalls
    return BREADTHS[-1], recalls


def _own(vectors: np.ndarray) -> Queries:
    rows = np.unique(np.linspace(0, len(vectors) - 1, QUERIES).astype(np.int64))
    return Queries("images", np.array(vectors[rows]), rows)


def _without_own(scores: np.ndarray, rows: np.ndarray, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """The first ten columns after each query's own image was taken out."""
    if queries.own_rows is None:
        return scores[:, :NEIGHBOURS], rows[:, :NEIGHBOURS]
    order = np.argsort(rows == queries.own_rows[:, None], axis=1, kind="stable")[:, :NEIGHBOURS]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def read_graph(path: Path, count: int, dimension: int) -> Any:
    """The graph that `build_index` wrote, of so many vectors. Raises UserError when it is something else."""
    import faiss

    try:
        index: Any = faiss.read_index(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} is damaged ({error!s:.100}); copy the gallery again or index anew") from error
    if not isinstance(index, faiss.IndexHNSW) or (index.ntotal, index.d) != (count, dimension):
        raise UserError(f"{path} is the index of another gallery; copy the gallery again or index anew")
    return index
