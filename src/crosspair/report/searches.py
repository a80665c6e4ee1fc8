"""One direction of retrieval as the report looks at it: what is asked, among what, and how soon it was found."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.metrics import RetrievalResult
from crosspair.evaluation.protocols import PLAIN, Evaluation
from crosspair.evaluation.ranking import Direction, Metric
from crosspair.report.hubness import Neighbours, nearest


@dataclass(frozen=True)
class Search:
    """The queries of one side among all items of the other.

    queries [n, d], gallery [m, d]: unit rows for "cosine". query_labels [n], gallery_labels [m]: equal means relevant.
    rows [q]: those of the n that are asked. first [q]: the rank at which each of them meets a relevant item.
    """

    direction: Direction
    queries: NDArray[Any]
    gallery: NDArray[Any]
    query_labels: NDArray[np.int64]
    gallery_labels: NDArray[np.int64]
    metric: Metric
    rows: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def of_texts(self) -> bool:
        """Whether texts look for images."""
        return self.direction == "text_to_image"

    @property
    def query_word(self) -> str:
        """One query, in words."""
        return "sentence" if self.of_texts else "picture"

    @property
    def item_word(self) -> str:
        """One item of the gallery, in words."""
        return "picture" if self.of_texts else "caption"

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """The rank of each of the n rows' first relevant item [n]; 0 where a row is not asked."""
        return ranks_by_row(len(self.queries), self.rows, self.first)

    def nearest(self, rows: NDArray[np.int64], top: int = 10) -> Neighbours:
        """The first items of some rows, which need not be among those that are asked."""
        return nearest(self.queries, self.gallery, self.query_labels, self.gallery_labels, self.metric, rows, top)


def ranks_by_row(count: int, rows: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks [count] by row, 0 for the rows that are not among `rows`."""
    ranks = np.zeros(count, dtype=np.int64)
    ranks[rows] = first
    return ranks


def searches(result: RetrievalResult, data: Embeddings) -> dict[Direction, Search]:
    """The directions that were evaluated, texts to images first. result: of every query among the whole other side."""
    images, texts = (_comparable(each, result.metric) for each in (data.images, data.texts))
    sides = [(images, data.image_labels), (texts, data.text_labels)]
    found: dict[Direction, Search] = {}
    for name in ("text_to_image", "image_to_text"):
        if name in result.directions:
            (queries, labels), (gallery, gallery_labels) = sides[::-1] if name == "text_to_image" else sides
            ranks = result.directions[name].ranks
            found[name] = Search(
                name, queries, gallery, labels, gallery_labels, result.metric, ranks.queries, ranks.first
            )
    return found


def of_all(evaluation: Evaluation, data: Embeddings) -> RetrievalResult:
    """The ranks of every query among the whole other side, whatever the protocol ranks."""
    if evaluation.protocol.ranks_whole_split:
        return evaluation.result
    directions = tuple(name for name in ("image_to_text", "text_to_image") if name in evaluation.result.directions)
    return PLAIN.evaluate(data, evaluation.result.metric, directions=directions, distractors=True).result


def sample(count: int, most: int) -> NDArray[np.int64]:
    """All rows, or `most` of them drawn at random, ascending."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def _comparable(embeddings: NDArray[Any], metric: Metric) -> NDArray[Any]:
    embeddings = embeddings.astype(np.float32) if embeddings.dtype == np.float16 else embeddings
    if metric == "euclidean":
        return embeddings
    unit: NDArray[Any] = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return unit
