"""Example queries, which are chosen (at random, the hardest, the most confident mistakes), and their cards as HTML."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.ranking import Metric
from crosspair.report.hubness import Neighbours, nearest
from crosspair.report.inline_images import ShownImages

RELEVANT = '<span class="mark-relevant">✓ relevant</span>'
# Names of the groups with the ranks of the first relevant item they hold, the second excluded.
GROUPS = {"found at once": (1, 2), "found among the first ten": (2, 11), "missed": (11, np.inf)}


@dataclass(frozen=True)
class Query:
    """A query and its first items, best first.

    query: row of its embedding; first: rank of its first relevant item; group: what it is shown among, say in GROUPS.
    items, scores, relevant: row, score (cosine, or distance for "euclidean") and match of the items retrieved.
    """

    query: int
    first: int
    group: str
    items: tuple[int, ...]
    scores: tuple[float, ...]
    relevant: tuple[bool, ...]

    def placed(self) -> Iterator[tuple[int, int, float, bool]]:
        """Place (from 1), row, score and relevance of each item."""
        return zip(range(1, len(self.items) + 1), self.items, self.scores, self.relevant, strict=True)


def choose_queries(first: NDArray[np.int64], count: int, seed: int = 0) -> list[tuple[str, int]]:
    """`count` queries as (group, row), a third from each group as far as they go, drawn by `seed`.

    first [queries]: rank of each query's first relevant item.
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
    """Rows of the queries whose first relevant item ranks last, worst first, one of each label; none that are found."""
    order = np.argsort(-first, kind="stable")
    return _distinct((row for row in order if first[row] > 1), [labels], count)


def confident_mistakes(
    neighbours: Neighbours, first: NDArray[np.int64], labels: NDArray[np.int64], metric: Metric, count: int
) -> list[int]:
    """Rows of the queries whose first item is irrelevant and most similar, one of each label and of each such item."""
    wrong = np.flatnonzero(~neighbours.relevant[:, 0] & (first[neighbours.queries] > 1))
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
            tuple(found.relevant[place].tolist()),
        )
        for place, (group, row) in enumerate(chosen)
    ]


Card = Callable[[Query], str]


def text_card(data: Embeddings, captions: Sequence[str], shown: ShownImages) -> Card:
    """A card of a sentence: the nearest images, and the one it sought if it isn't among them."""

    def card(query: Query) -> str:
        items = "".join(
            f'<li{_class(relevant)}>{shown.show(item)}<span class="note"><span>{place} · {score:.2f}</span>'
            f"{RELEVANT if relevant else ''}</span></li>"
            for place, item, score, relevant in query.placed()
        )
        if not any(query.relevant):
            sought = int(np.flatnonzero(data.image_labels == data.text_labels[query.query])[0])
            note = f'<span class="note"><span>sought</span>{RELEVANT}</span>'
            items += f'<li class="sought is-relevant">{shown.show(sought)}{note}</li>'
        return (
            f'<article class="card query"><p class="sentence">“{escape(captions[query.query])}”</p>'
            f'{_verdict(query, "picture", len(data.images))}<ol class="images">{items}</ol></article>'
        )

    return card


def image_card(data: Embeddings, captions: Sequence[str], shown: ShownImages) -> Card:
    """A card of an image: the nearest captions, and one of its own if none is among them."""

    def card(query: Query) -> str:
        items = "".join(
            f'<li{_class(relevant)}><span class="quiet">{place}</span><span class="quiet">{score:.2f}</span>'
            f'<span><span class="sentence">{escape(captions[item])}</span> {RELEVANT if relevant else ""}</span></li>'
            for place, item, score, relevant in query.placed()
        )
        if not any(query.relevant):
            sought = int(np.flatnonzero(data.text_labels == data.image_labels[query.query])[0])
            items += (
                '<li class="sought is-relevant"><span class="quiet wide">sought</span>'
                f'<span><span class="sentence">{escape(captions[sought])}</span> {RELEVANT}</span></li>'
            )
        return (
            f'<article class="card query by-image">{shown.show(query.query)}<div>'
            f'{_verdict(query, "caption", len(data.texts))}<ol class="captions">{items}</ol></div></article>'
        )

    return card


def grouped_cards(found: Sequence[Query], card: Card) -> str:
    """Cards under the names of their groups."""
    parts = []
    for group, queries in groupby(found, key=lambda query: query.group):
        parts.append(f"<h3>{escape(group)}</h3>")
        parts.extend(card(query) for query in queries)
    return "\n".join(parts)


def _verdict(query: Query, what: str, gallery_size: int) -> str:
    return f'<p class="verdict">first relevant {what} at rank {query.first:,} of {gallery_size:,}</p>'


def _class(relevant: bool) -> str:
    return ' class="is-relevant"' if relevant else ""
