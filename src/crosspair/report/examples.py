"""Example queries, which are chosen (at random, the hardest, the most confident mistakes), and their cards as HTML."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.ranking import Direction, Metric
from crosspair.report.hubness import Neighbours
from crosspair.report.inline_images import ShownImages
from crosspair.report.searches import Search
from crosspair.report.text import foreign, sentence

RELEVANT = '<span class="mark-relevant">✓ relevant</span>'
# Names of the groups with the ranks of the first relevant item they hold, the second excluded.
GROUPS = {"found at once": (1, 2), "found among the first ten": (2, 11), "missed": (11, np.inf)}


@dataclass(frozen=True)
class Model:
    """A model as the report shows it.

    name: written at its rankings where there are two models. ranks: of every row's first relevant item, 0 for one that
    is no query. searches: for what it retrieves; empty where only its ranks are known.
    """

    name: str
    ranks: Mapping[Direction, NDArray[np.int64]]
    searches: Mapping[Direction, Search] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """A query and its first items, best first.

    query: row of its embedding; first: rank of its first relevant item; group: what it is shown among, say in GROUPS.
    items, scores, relevant: row, score (cosine, or distance for "euclidean") and match of the items retrieved; empty
    where only the rank is known.
    """

    query: int
    first: int
    group: str
    items: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    relevant: tuple[bool, ...] = ()

    def placed(self) -> Iterator[tuple[int, int, float, bool]]:
        """Place (from 1), row, score and relevance of each item."""
        return zip(range(1, len(self.items) + 1), self.items, self.scores, self.relevant, strict=True)


def choose_queries(first: NDArray[np.int64], count: int, seed: int = 0) -> list[tuple[str, int]]:
    """`count` queries as (group, number), a third from each group as far as they go, drawn by `seed`.

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
    """Numbers of the queries whose first relevant item ranks last, worst first, one of each label; none at rank 1."""
    order = np.argsort(-first, kind="stable")
    return distinct((row for row in order if first[row] > 1), [labels], count)


def confident_mistakes(
    neighbours: Neighbours, first: NDArray[np.int64], labels: NDArray[np.int64], metric: Metric, count: int
) -> list[int]:
    """Rows of the queries whose first item is irrelevant and most similar, one of each label and of each such item."""
    wrong = np.flatnonzero(~neighbours.relevant[:, 0] & (first[neighbours.queries] > 1))
    scores = neighbours.scores[wrong, 0]
    wrong = wrong[np.argsort(-scores if metric == "cosine" else scores, kind="stable")]
    kinds = [labels[neighbours.queries], neighbours.items[:, 0]]
    return [int(neighbours.queries[row]) for row in distinct(wrong, kinds, count)]


def distinct(rows: Iterable[int], kinds: list[NDArray[np.int64]], count: int) -> list[int]:
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


def retrieve(chosen: Sequence[tuple[str, int]], model: Model, direction: Direction, top: int = 5) -> list[Query]:
    """What a model retrieves for the chosen queries, (group, row): its `top` items, or no more than its rank."""
    ranks = model.ranks[direction]
    if direction not in model.searches:
        return [Query(row, int(ranks[row]), group) for group, row in chosen]
    found = model.searches[direction].nearest(np.array([row for _, row in chosen], dtype=np.int64), top)
    return [
        Query(
            row,
            int(ranks[row]),
            group,
            tuple(found.items[place].tolist()),
            tuple(found.scores[place].tolist()),
            tuple(found.relevant[place].tolist()),
        )
        for place, (group, row) in enumerate(chosen)
    ]


def cards(
    chosen: Sequence[tuple[str, int]],
    models: Sequence[Model],
    direction: Direction,
    captions: Sequence[str],
    shown: ShownImages,
) -> str:
    """Cards of the chosen queries, (group, row), under the names of their groups; the models' rankings one by one.

    The first model has searches. captions: of all texts, by row.
    """
    if not chosen:
        return ""
    search = models[0].searches[direction]
    found = [retrieve(chosen, model, direction) for model in models]
    names = [model.name for model in models] if len(models) > 1 else [""]
    card = _text_card(search, captions, shown) if search.of_texts else _image_card(search, captions, shown)
    parts = []
    for group, queries in groupby(zip(*found, strict=True), key=lambda each: each[0].group):
        parts.append(f"<h3>{foreign(group)}</h3>")
        parts.extend(card(list(zip(names, query, strict=True))) for query in queries)
    return "\n".join(parts)


_Card = Callable[[list[tuple[str, Query]]], str]  # of a query's rankings, each with its model's name


def _text_card(search: Search, captions: Sequence[str], shown: ShownImages) -> _Card:
    """A card of a sentence: the nearest images, and the one it sought if it isn't among them."""

    def items(query: Query) -> str:
        found = "".join(
            f'<li{_class(relevant)}>{shown.show(item)}<span class="note"><span>{place} · {score:.2f}</span>'
            f"{RELEVANT if relevant else ''}</span></li>"
            for place, item, score, relevant in query.placed()
        )
        if query.items and not any(query.relevant):
            note = f'<span class="note"><span>sought</span>{RELEVANT}</span>'
            found += f'<li class="sought is-relevant">{shown.show(_sought(search, query))}{note}</li>'
        return f'<ol class="images">{found}</ol>' if found else ""

    def card(rankings: list[tuple[str, Query]]) -> str:
        asked = sentence(captions[rankings[0][1].query], "p", quoted=True)
        parts = "".join(_verdict(name, query, search) + items(query) for name, query in rankings)
        return f'<article class="card query">{asked}{parts}</article>'

    return card


def _image_card(search: Search, captions: Sequence[str], shown: ShownImages) -> _Card:
    """A card of an image: the nearest captions, and one of its own if none is among them."""

    def items(query: Query) -> str:
        found = "".join(
            f'<li{_class(relevant)}><span class="quiet">{place}</span><span class="quiet">{score:.2f}</span>'
            f"<span>{sentence(captions[item])} {RELEVANT if relevant else ''}</span></li>"
            for place, item, score, relevant in query.placed()
        )
        if query.items and not any(query.relevant):
            found += (
                '<li class="sought is-relevant"><span class="quiet wide">sought</span>'
                f"<span>{sentence(captions[_sought(search, query)])} {RELEVANT}</span></li>"
            )
        return f'<ol class="captions">{found}</ol>' if found else ""

    def card(rankings: list[tuple[str, Query]]) -> str:
        parts = "".join(_verdict(name, query, search) + items(query) for name, query in rankings)
        asked = shown.show(rankings[0][1].query)
        return f'<article class="card query by-image"><div class="asked">{asked}</div><div>{parts}</div></article>'

    return card


def _sought(search: Search, query: Query) -> int:
    return int(np.flatnonzero(search.gallery_labels == search.query_labels[query.query])[0])


def _verdict(name: str, query: Query, search: Search) -> str:
    of = f"<b>{foreign(name)}</b>: " if name else ""
    size = len(search.gallery)
    return f'<p class="verdict">{of}first relevant {search.item_word} at rank {query.first:,} of {size:,}</p>'


def _class(relevant: bool) -> str:
    return ' class="is-relevant"' if relevant else ""
