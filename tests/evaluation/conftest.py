"""The reference cases of evaluation, and a full sort to compare with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from crosspair.original.verify.reference import load
from tests.fixtures.paths import ORACLE

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def oracle() -> Arrays:
    """Some cases come with the package, the others lie beside the tests."""
    with np.load(ORACLE / "evaluation" / "eval_cases.npz") as file:
        return {**load("retrieval"), **file}


@dataclass
class FullSort:
    """One query's numbers by sorting its gallery, the negatives of a tie first."""

    ranks: list[int]  # of the positives, behind every item of equal score
    first: int
    optimistic: int  # the first, if ties go for the model
    average_precision: float
    places: list[int]  # of the positives in one full order
    inverse_negative_penalty: float
    ndcg: float


def _full_sort(scores: np.ndarray, relevant: np.ndarray) -> FullSort:
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], relevant[item]))
    first = 1 + next(place for place, item in enumerate(order) if relevant[item])
    optimistic = 1 + sum(scores > max(score for score, hit in zip(scores, relevant, strict=True) if hit))
    ranks, precisions = [], []
    for item in order:
        if relevant[item]:
            reaching = [other for other in order if scores[other] >= scores[item]]
            ranks.append(len(reaching))
            precisions.append(sum(bool(relevant[other]) for other in reaching) / len(reaching))
    places = [place for place, item in enumerate(order, 1) if relevant[item]]
    gain = sum(1 / math.log2(1 + place) for place in places)
    ideal = sum(1 / math.log2(1 + place) for place in range(1, len(places) + 1))
    return FullSort(
        ranks, first, optimistic, sum(precisions) / len(precisions), places, len(places) / max(places), gain / ideal
    )


@pytest.fixture(scope="session")
def full_sort() -> Callable[[Any, Any], FullSort]:
    """Scores and relevance of one query's gallery to its ranks and average precision."""
    return _full_sort
