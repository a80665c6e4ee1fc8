"""Recall by kinds of queries: by the length of a sentence, by the number of right items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crosspair.report.charts import Estimate

_Z = 1.959964  # of a 95 per cent interval


@dataclass(frozen=True)
class Group:
    """Queries of a kind. recalls: per cent of them with a right item among the first K, by K."""

    name: str
    queries: int
    recalls: dict[int, Estimate]


def recall_by(values: NDArray[np.int64], first: NDArray[np.int64], ks: Sequence[int], groups: int = 6) -> list[Group]:
    """Recall@K of queries grouped by a whole number, at most `groups` groups of about equal size.

    values [queries]: what to group by; equal values stay together. first [queries]: rank of the first right item.
    """
    found = []
    for low, high in _ranges(values, groups):
        ranks = first[(values >= low) & (values <= high)]
        recalls = {k: wilson(int((ranks <= k).sum()), len(ranks)) for k in ks}
        found.append(Group(f"{low}" if low == high else f"{low}\u2013{high}", len(ranks), recalls))
    return found


def _ranges(values: NDArray[np.int64], groups: int) -> list[tuple[int, int]]:
    """Lowest and highest value of each group; what is left at the end, if little, joins the last."""
    distinct, counts = np.unique(values, return_counts=True)
    share = len(values) / groups
    ends, taken = [], 0
    for place, count in enumerate(counts.tolist()):
        taken += count
        if taken >= share:
            ends.append(place)
            taken = 0
    if ends and taken < share / 2:
        ends.pop()
    if not ends or ends[-1] != len(distinct) - 1:
        ends.append(len(distinct) - 1)
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [(int(distinct[start]), int(distinct[end])) for start, end in zip(starts, ends, strict=True)]


def wilson(successes: int, trials: int) -> Estimate:
    """A share in per cent with Wilson's score interval of 95 per cent (JASA 1927), for independent trials."""
    share = successes / trials
    shrink = 1 + _Z**2 / trials
    centre = (share + _Z**2 / (2 * trials)) / shrink
    half = _Z / shrink * np.sqrt(share * (1 - share) / trials + (_Z / (2 * trials)) ** 2)
    return Estimate(100 * share, 100 * max(0.0, float(centre - half)), 100 * min(1.0, float(centre + half)))
