"""The metrics of retrieval by name: each one's value for every query, from the ranks of its positives.

Where a metric takes places one by one, the negatives of a tie go first and its positives follow: PositiveRanks.places.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.inputs import EvaluationInputError
from crosspair.evaluation.ranking import PositiveRanks

Values = NDArray[np.float64]


def average_precision(ranks: PositiveRanks) -> Values:
    """The mean over a query's positives of the precision at their rank [queries], 0 to 1.

    Tied items are taken together, as in scikit-learn: the precision at a rank counts every positive of that score.
    """
    return _mean(ranks, ranks.hits / ranks.ranks)


def original_average_precision(ranks: PositiveRanks) -> Values:
    """Average precision [queries], 0 to 1, as the released CMPL code computes it: one hit short.

    There the precision at rank r with h hits so far is (h - 1) / r instead of h / r, except at rank 1. It ranks by a
    sort that leaves ties in any order; here the negatives of a tie go first and its positives follow one by one.
    """
    return _mean(ranks, (ranks.numbers - (ranks.places > 1)) / ranks.places)


def average_precision_at_k(ranks: PositiveRanks, k: int) -> Values:
    """Average precision over the first k places [queries], 0 to 1.

    The precision at each of these places that holds a positive, summed and divided by min(k, number of positives), so
    that a perfect ranking has 1. trec_eval's map_cut divides by the number of positives instead.
    """
    precision = np.where(ranks.places <= k, ranks.numbers / ranks.places, 0.0)
    return np.asarray(_sum(ranks, precision) / np.minimum(k, ranks.positives))


def average_precision_at_r(ranks: PositiveRanks) -> Values:
    """Average precision over the first R places [queries], 0 to 1, R being the query's number of positives.

    The precision at each of these places that holds a positive, summed and divided by R (Musgrave et al., "A Metric
    Learning Reality Check", ECCV 2020, section 3.2).
    """
    return _mean(ranks, np.where(_among_first_r(ranks), ranks.numbers / ranks.places, 0.0))


def r_precision(ranks: PositiveRanks) -> Values:
    """The share of positives among the first R places [queries], 0 to 1, R being the query's number of positives."""
    return _mean(ranks, _among_first_r(ranks).astype(np.float64))


def reciprocal_rank(ranks: PositiveRanks) -> Values:
    """1 / the rank of the first positive [queries], 0 to 1."""
    return np.asarray(1 / ranks.first)


def inverse_negative_penalty(ranks: PositiveRanks) -> Values:
    """The number of positives by the rank of the last of them [queries], 0 to 1.

    Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook" (TPAMI 2021), section 4.
    """
    return np.asarray(ranks.positives / ranks.last)


def ndcg(ranks: PositiveRanks, k: int | None = None) -> Values:
    """Normalised discounted cumulative gain [queries], 0 to 1, over the first k places, or the whole gallery.

    A positive at place r gains 1 / log2(1 + r); the sum is divided by that of a perfect ranking, over as many places
    (Jarvelin and Kekalainen, TOIS 2002).
    """
    gained, ideal = (
        _sum(ranks, np.where(places <= (k or ranks.gallery_size + 1), 1 / np.log2(1 + places), 0.0))
        for places in (ranks.places, ranks.numbers)
    )
    return np.asarray(gained / ideal)


def found(ranks: PositiveRanks, k: int) -> NDArray[np.bool_]:
    """Whether there is a positive among the first k items [queries]: all of them if k exceeds the gallery."""
    return ranks.first <= k


def precision(ranks: PositiveRanks, k: int) -> Values:
    """The number of positives among the first k items, divided by k [queries], 0 to 1.

    That is what Reed et al. (CVPR 2016) average over classes and call AP@50. Places that a smaller gallery doesn't have
    hold no positive, as in trec_eval.
    """
    return np.asarray(_sum(ranks, (ranks.places <= k).astype(np.float64)) / k)


RANKS = ("median_rank", "mean_rank")
WHOLE: dict[str, Callable[[PositiveRanks], Values]] = {
    "mAP": average_precision,
    "mAP_original": original_average_precision,
    "MRR": reciprocal_rank,
    "mINP": inverse_negative_penalty,
    "nDCG": ndcg,
    "mAP@R": average_precision_at_r,
    "R-Precision": r_precision,
}
AT_K: dict[str, Callable[[PositiveRanks, int], NDArray[Any]]] = {
    "R": found,
    "AP": precision,
    "mAP": average_precision_at_k,
    "nDCG": ndcg,
}
_AT_K = re.compile(rf"({'|'.join(AT_K)})@([1-9][0-9]{{0,17}})")


def check_metric(name: str) -> None:
    """Raise EvaluationInputError unless there is a metric of that name."""
    if not isinstance(name, str) or (name not in RANKS and name not in WHOLE and not _AT_K.fullmatch(name)):
        *first, last = (f"{name}@K" for name in AT_K)
        raise EvaluationInputError(
            f"there is no metric {name!r}; expected {', '.join((*WHOLE, *RANKS))}, or {', '.join(first)} and {last} "
            "with a K from 1"
        )


def values_of(name: str, ranks: PositiveRanks) -> NDArray[Any]:
    """The values of a metric for each query [queries]: a share from 0 to 1, or the rank of the first positive.

    Raises EvaluationInputError for a name that is no metric.
    """
    check_metric(name)
    if name in RANKS:
        return ranks.first
    if name in WHOLE:
        return WHOLE[name](ranks)
    kind, k = name.split("@")
    return AT_K[kind](ranks, int(k))


def _among_first_r(ranks: PositiveRanks) -> NDArray[np.bool_]:
    return np.asarray(ranks.places <= np.repeat(ranks.positives, ranks.positives))


def _sum(ranks: PositiveRanks, values: NDArray[Any]) -> Values:
    return np.asarray(np.add.reduceat(values, ranks.offsets[:-1]))


def _mean(ranks: PositiveRanks, values: NDArray[Any]) -> Values:
    return _sum(ranks, values) / ranks.positives
