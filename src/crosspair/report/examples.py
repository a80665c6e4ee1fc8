"""Queries worth looking at: found at once, late or not, the hardest and the most confident mistakes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.ranking import Metric
from crosspair.report.hubness import Neighbours, nearest

# Names of the groups with the ranks of the first right item they hold, the second excluded.
GROUPS = {"found at once": (1, 2), "found among the first ten": (2, 11), "missed": (11, np.inf)}


@dataclass(frozen=True)
class Query:
    """A query and its first items, best first.

    query: row of its embedding; first: rank of its first right item; group: what it is shown among, say in GROUPS.
    items, scores, right: row, score (cosine, or distance for "euclidean") and match of the items retrieved.
    """

    query: int
    first: int
    group: str
    items: tuple[int, ...]
    scores: tuple[float, ...]
    right: tuple[bool, ...]


def choose_queries(first: NDArray[np.int64], count: int, seed: int = 0) -> list[tuple[str, int]]:
    """`count` queries as (group, row), a third from each group as far as they go, drawn by `seed`.

    first [queries]: rank of each query's first right item.
    """
    random = np.random.default_rng(seed)
    drawn = [random.permutation(np.flatnonzero((first >= low) & (first < high))) for low, high in GROUPS.values()]
    shares = [0] * len(drawn)
    while sum(shares) < min(count, len(first)):
        group = min((g for g in range(len(drawn)) if shares[g] < len(drawn[g])), key=lambda g: shares[g])
        shares[group] += 1
    return [
        (name, int(row))
        for name, rows, share in zip(GROUPS, drawn, shares, strict=True)
        for row in np.sort(rows[:share])
    ]


def hardest_queries(first: NDArray[np.int64], labels: NDArray[np.int64], count: int) -> list[int]:
    """Rows of the queries whose first right item ranks last, worst first, one of each label; none that are found."""
    order = np.argsort(-first, kind="stable")
    return _distinct((row for row in order if first[row] > 1), [labels], count)


def confident_mistakes(
    neighbours: Neighbours, first: NDArray[np.int64], labels: NDArray[np.int64], metric: Metric, count: int
) -> list[int]:
    """Rows of the queries whose first item is wrong and most similar, one of each label and of each wrong item."""
    wrong = np.flatnonzero(~neighbours.right[:, 0] & (first[neighbours.queries] > 1))
    scores = neighbours.scores[wrong, 0]
    wrong = wrong[np.argsort(-scores if metric == "cosine" else scores, kind="stable")]
    kinds = [labels[neighbours.queries], neighbours.items[:, 0]]
    return [int(neighbours.queries[row]) for row in _distinct(wrong, kinds, count)]


def _distinct(rows: Iterable[int], kinds: list[NDArray[np.int64]], count: int) -> list[int]:
    """The first `count` rows that share none of their kinds with one before."""
    chosen: list[int] = []
    seen: list[set[int]] = [set() for _ in kinds]
    for row in rows:
        if len(chosen) == count:
            break
        own = [int(kind[row]) for kind in kinds]
        if not any(value in before for value, before in zip(own, seen, strict=True)):
            chosen.append(int(row))
            for value, before in zip(own, seen, strict=True):
                before.add(value)
    return chosen


def retrieve(
    chosen: list[tuple[str, int]],
    first: NDArray[np.int64],
    queries: NDArray[Any],
    gallery: NDArray[Any],
    labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
    metric: Metric,
    top: int = 5,
) -> list[Query]:
    """The `top` items of the chosen queries; queries [n, d] and gallery [m, d] are unit rows for "cosine"."""
    rows = np.array([row for _, row in chosen], dtype=np.int64)
    found = nearest(queries, gallery, labels, gallery_labels, metric, rows, top)
    return [
        Query(
            row,
            int(first[row]),
            group,
            tuple(found.items[place].tolist()),
            tuple(found.scores[place].tolist()),
            tuple(found.right[place].tolist()),
        )
        for place, (group, row) in enumerate(chosen)
    ]


def sample_similarities(
    images: NDArray[Any],
    texts: NDArray[Any],
    image_labels: NDArray[np.int64],
    text_labels: NDArray[np.int64],
    metric: Metric,
    most: int = 20_000,
    seed: int = 0,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Scores of matching and of other pairs, up to `most` of each, drawn at random where there are more.

    images [n, d], texts [m, d]: unit rows for "cosine". The second is empty when everything matches.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(text_labels, kind="stable")
    start = np.searchsorted(text_labels[order], image_labels, side="left")
    count = np.searchsorted(text_labels[order], image_labels, side="right") - start
    end = np.cumsum(count)
    pair = np.arange(end[-1]) if end[-1] <= most else random.choice(end[-1], most, replace=False)
    image = np.searchsorted(end, pair, side="right")
    text = order[start[image] + pair - (end - count)[image]]
    matching = _scores(images[image], texts[text], metric)
    image, text = random.integers(0, len(images), most), random.integers(0, len(texts), most)
    other = image_labels[image] != text_labels[text]
    return matching, _scores(images[image[other]], texts[text[other]], metric)


def _scores(first: NDArray[Any], second: NDArray[Any], metric: Metric) -> NDArray[np.floating[Any]]:
    scores: NDArray[np.floating[Any]]
    if metric == "cosine":
        scores = np.einsum("nd,nd->n", first, second)
    else:
        scores = np.linalg.norm(first - second, axis=1)
    return scores
