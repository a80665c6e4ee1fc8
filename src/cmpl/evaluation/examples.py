"""Queries worth looking at: some found at once, some found late, some missed, with what they retrieve."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpl.evaluation.ranking import Metric

# Names of the groups with the ranks of the first right item they hold, the second excluded.
GROUPS = {"Found at once": (1, 2), "Found among the first ten": (2, 11), "Missed": (11, np.inf)}


@dataclass(frozen=True)
class Query:
    """A query and its first items, best first.

    query: row of its embedding; first: rank of its first right item; group: a name of GROUPS.
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
    found = []
    for group, row in chosen:
        if metric == "cosine":
            scores = gallery @ queries[row]
            order = np.argsort(-scores, kind="stable")[:top]
        else:
            scores = np.linalg.norm(gallery - queries[row], axis=1)
            order = np.argsort(scores, kind="stable")[:top]
        right = gallery_labels[order] == labels[row]
        found.append(
            Query(
                row,
                int(first[row]),
                group,
                tuple(order.tolist()),
                tuple(float(score) for score in scores[order]),
                tuple(right.tolist()),
            )
        )
    return found


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
