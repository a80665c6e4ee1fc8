"""Nearest items of every query, and hubness: how often an item is among them, and which are so far more often.

In many dimensions a few items are near to everything (Radovanovic et al., "Hubs in Space", JMLR 2010): they fill the
first places of many queries, and others are never found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crosspair.evaluation.ranking import Metric
from crosspair.report.inline_images import ShownImages
from crosspair.report.text import sentence

_BLOCK = 256  # queries whose scores are held at once


@dataclass(frozen=True)
class Neighbours:
    """The nearest items of some queries, best first; an irrelevant item goes before a relevant one of equal score.

    queries [q]: rows of the queries, ascending. items, relevant [q, k]: rows of the items, and whether they match.
    scores [q, k]: cosine, or distance for "euclidean". gallery_size: number of items there were to choose from.
    """

    queries: NDArray[np.int64]
    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    relevant: NDArray[np.bool_]
    gallery_size: int


def nearest(
    queries: NDArray[Any],
    gallery: NDArray[Any],
    labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
    metric: Metric,
    rows: NDArray[np.int64],
    top: int = 10,
) -> Neighbours:
    """The `top` items of the queries in `rows` (all items of a smaller gallery).

    queries [n, d] and gallery [m, d] are unit rows for "cosine"; labels [n], gallery_labels [m]: equal means relevant.
    """
    top = min(top, len(gallery))
    # A few more than are kept, so that the irrelevant ones of a tie at the end can still go first.
    reach = min(2 * top, len(gallery))
    items, scores = np.empty((len(rows), top), dtype=np.int64), np.empty((len(rows), top), dtype=np.float32)
    relevant = np.empty((len(rows), top), dtype=bool)
    everything = torch.from_numpy(np.ascontiguousarray(gallery, dtype=np.float32))
    for start in range(0, len(rows), _BLOCK):
        some = slice(start, start + _BLOCK)
        asked = torch.from_numpy(np.ascontiguousarray(queries[rows[some]], dtype=np.float32))
        found = asked @ everything.T if metric == "cosine" else -torch.cdist(asked, everything)
        values, places = (each.numpy() for each in found.topk(reach, dim=1))
        match = gallery_labels[places] == labels[rows[some]][:, None]
        order = np.lexsort((places, match, -values))[:, :top]
        items[some], relevant[some] = (np.take_along_axis(each, order, 1) for each in (places, match))
        scores[some] = np.take_along_axis(values if metric == "cosine" else -values, order, 1)
    return Neighbours(rows, items, scores, relevant, len(gallery))


@dataclass(frozen=True)
class Hubness:
    """Counts of how often items are among the first k of the queries.

    counts, relevant [items]: times each was retrieved, and times it was relevant. k: places counted.
    """

    counts: NDArray[np.int64]
    relevant: NDArray[np.int64]
    k: int

    @property
    def skewness(self) -> float:
        """Third standardised moment of the counts: 0 when they spread evenly about their mean, large with hubs.

        The measure of hubness by Radovanovic et al.; 0 where all counts are equal.
        """
        centred = self.counts - self.counts.mean()
        deviation = float(np.sqrt((centred**2).mean()))
        return float((centred**3).mean()) / deviation**3 if deviation else 0.0

    @property
    def never(self) -> float:
        """Share of items that are never retrieved, 0 to 1."""
        return float((self.counts == 0).mean())

    def share_of_most_retrieved(self, share: float = 0.05) -> float:
        """The part of all retrieved places that the most retrieved `share` of items takes, 0 to 1."""
        most = np.sort(self.counts)[::-1][: max(1, round(share * len(self.counts)))]
        return float(most.sum() / self.counts.sum())

    def hubs(self, count: int) -> list[int]:
        """Rows of the most retrieved items, most first."""
        order = np.lexsort((np.arange(len(self.counts)), -self.counts))[:count]
        return [int(row) for row in order if self.counts[row]]


def count_retrieved(neighbours: Neighbours) -> Hubness:
    """Counts of each item of the gallery among the neighbours."""
    items, size = neighbours.items, neighbours.gallery_size
    return Hubness(
        np.bincount(items.ravel(), minlength=size),
        np.bincount(items[neighbours.relevant], minlength=size),
        items.shape[1],
    )


def hub_images(hubness: Hubness, shown: ShownImages, count: int = 6) -> str:
    """The most retrieved images."""
    items = "".join(
        f'<li>{shown.show(row)}<span class="note">{_times(hubness, row)}</span></li>' for row in hubness.hubs(count)
    )
    return f'<div class="card"><h3>Most retrieved pictures</h3><ol class="images">{items}</ol></div>'


def hub_texts(hubness: Hubness, captions: Sequence[str], count: int = 6) -> str:
    """The most retrieved captions."""
    items = "".join(
        f'<li>{sentence(captions[row])}<span class="note">{_times(hubness, row)}</span></li>'
        for row in hubness.hubs(count)
    )
    return f'<div class="card"><h3>Most retrieved captions</h3><ol class="hubs">{items}</ol></div>'


def _times(hubness: Hubness, row: int) -> str:
    return f"<span>{hubness.counts[row]:,} times, relevant {hubness.relevant[row]:,}</span>"
