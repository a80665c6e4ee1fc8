"""Retrieval metrics of image-text matching, in both directions: each is a mean (or median) of values kept per query."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crosspair.evaluation.inputs import EvaluationInputError
from crosspair.evaluation.ranking import DIRECTIONS, Direction, Metric, PositiveRanks, count_ranks, prepare_counting

MetricDefinition = Literal["exact", "original"]

_RANKS = ("median_rank", "mean_rank")
# The shares, query by query, behind the metrics without a cut-off.
_SHARES = {
    "mAP": "average_precision",
    "mAP_original": "original_average_precision",
    "mINP": "inverse_negative_penalty",
    "nDCG": "ndcg",
    "mAP@R": "average_precision_at_r",
    "R-Precision": "r_precision",
}
_AT_K = re.compile(r"(R|AP)@[1-9][0-9]*")


def check_metric(name: str) -> None:
    """Raise EvaluationInputError unless there is a metric of that name."""
    if name not in _RANKS and name not in _SHARES and not _AT_K.fullmatch(name):
        known = ", ".join((*_SHARES, *_RANKS))
        raise EvaluationInputError(f"there is no metric {name!r}; expected {known}, or R@K and AP@K with a K from 1")


@dataclass(frozen=True)
class DirectionResult:
    """Metrics of one direction.

    ranks: of all positives of all queries.
    ks: the cut-offs of Recall@K.
    metric_definition: "original" adds the average precision of the released CMPL code to `to_dict`.
    extra: further metrics for `to_dict`, by name: "mINP", "nDCG", "mAP@R", "AP@50" (or another cut-off), "R@20" ...
    """

    ranks: PositiveRanks
    ks: tuple[int, ...] = (1, 5, 10)
    metric_definition: MetricDefinition = "exact"
    extra: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics of `to_dict`."""
        original = ("mAP_original",) if self.metric_definition == "original" else ()
        usual = (*(f"R@{k}" for k in self.ks), "mAP", *original, "median_rank", "mean_rank")
        return (*usual, *(name for name in dict.fromkeys(self.extra) if name not in usual))

    def values(self, name: str) -> NDArray[Any]:
        """The values of a metric for each query [queries]: a share from 0 to 1, or a rank.

        Raises EvaluationInputError for a name that is no metric.
        """
        check_metric(name)
        if name in _RANKS:
            return self.ranks.first
        if name in _SHARES:
            return np.asarray(getattr(self, _SHARES[name]))
        kind, k = name.split("@")
        return self.found(int(k)) if kind == "R" else self.precision(int(k))

    def value(self, name: str) -> float:
        """The metric of that name: the mean of its values in per cent, the mean or the median of the ranks."""
        values = self.values(name)
        if name in _RANKS:
            return float(np.median(values) if name == "median_rank" else values.mean())
        return float(values.mean() * 100)

    def recall(self, k: int) -> float:
        """Percentage of queries with a positive among the first k items (all of them if k exceeds the gallery)."""
        return self.value(f"R@{k}")

    def found(self, k: int) -> NDArray[np.bool_]:
        """Whether each query has a positive among the first k items [queries]."""
        return self.ranks.first <= k

    def precision(self, k: int) -> NDArray[np.float64]:
        """Share of positives among the first k items of each query [queries], 0 to 1: "AP@k" is its mean.

        That is what Reed et al. (CVPR 2016) average over classes and call AP@50. Of a gallery with fewer than k items,
        all count. Negatives of a tie go first.
        """
        among = np.add.reduceat((self.ranks.places <= k).astype(np.int64), self.ranks.offsets[:-1])
        return np.asarray(among / min(k, self.ranks.gallery_size))

    @property
    def average_precision(self) -> NDArray[np.float64]:
        """Average precision of each query [queries], 0 to 1: the mean over its positives of precision at their rank.

        Tied items are taken together, as in scikit-learn: the precision at a rank counts every positive of that score.
        """
        return _mean_per_query(self.ranks.hits / self.ranks.ranks, self.ranks)

    @property
    def original_average_precision(self) -> NDArray[np.float64]:
        """Average precision of each query [queries] as the released CMPL code computes it: one hit short.

        There the precision at rank r with h hits so far is (h - 1) / r instead of h / r, except at rank 1. It ranks by
        a sort that leaves ties in any order; here the negatives of a tie go first and its positives follow one by one.
        """
        place = self.ranks.places
        return _mean_per_query((self.ranks.numbers - (place > 1)) / place, self.ranks)

    @property
    def inverse_negative_penalty(self) -> NDArray[np.float64]:
        """Number of positives by the rank of the last of them, for each query [queries], 0 to 1: mINP is its mean.

        Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook" (TPAMI 2021), section 4.
        """
        return np.asarray(self.ranks.positives / self.ranks.last)

    @property
    def ndcg(self) -> NDArray[np.float64]:
        """Normalised discounted cumulative gain of each query [queries], 0 to 1, over the whole gallery.

        A positive at place r gains 1 / log2(1 + r); the sum is divided by that of a perfect ranking (Jarvelin and
        Kekalainen, TOIS 2002). Negatives of a tie go first.
        """
        gain, ideal = (1 / np.log2(1 + places) for places in (self.ranks.places, self.ranks.numbers))
        starts = self.ranks.offsets[:-1]
        return np.asarray(np.add.reduceat(gain, starts) / np.add.reduceat(ideal, starts))

    @property
    def average_precision_at_r(self) -> NDArray[np.float64]:
        """Average precision of each query [queries], 0 to 1, over its first R places, R being its number of positives.

        The precision at each of these places that holds a positive, summed and divided by R (Musgrave et al., "A
        Metric Learning Reality Check", ECCV 2020, section 3.2). Negatives of a tie go first.
        """
        places, numbers = self.ranks.places, self.ranks.numbers
        return _mean_per_query(np.where(self._among_first_r, numbers / places, 0.0), self.ranks)

    @property
    def r_precision(self) -> NDArray[np.float64]:
        """Share of positives among the first R places of each query [queries], R being its number of positives."""
        return _mean_per_query(self._among_first_r.astype(np.float64), self.ranks)

    @property
    def _among_first_r(self) -> NDArray[np.bool_]:
        return np.asarray(self.ranks.places <= np.repeat(self.ranks.positives, self.ranks.positives))

    def to_dict(self) -> dict[str, float]:
        """The metrics by name: recall and mean average precision in per cent, ranks of the first positive from 1.

        The median of an even number of ranks is the mean of the middle two. Then the extra ones.
        """
        return {name: self.value(name) for name in self.names}


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics of both directions: texts retrieved for an image, and images retrieved for a text.

    One of them is None when only the other was evaluated.
    """

    image_to_text: DirectionResult | None
    text_to_image: DirectionResult | None
    metric: Metric = "cosine"

    @property
    def directions(self) -> dict[str, DirectionResult]:
        """Those that were evaluated, by name."""
        both: tuple[tuple[str, DirectionResult | None], ...] = (
            ("image_to_text", self.image_to_text),
            ("text_to_image", self.text_to_image),
        )
        return {name: direction for name, direction in both if direction is not None}

    @property
    def metric_definition(self) -> MetricDefinition:
        return next(iter(self.directions.values())).metric_definition

    @property
    def rsum(self) -> float | None:
        """Sum of all recalls of both directions, in per cent; None when only one was evaluated."""
        if len(self.directions) < len(DIRECTIONS):
            return None
        return sum(direction.recall(k) for direction in self.directions.values() for k in direction.ks)

    def to_dict(self) -> dict[str, Any]:
        """The directions by name and the `rsum` of both, ready for JSON."""
        found: dict[str, Any] = {name: direction.to_dict() for name, direction in self.directions.items()}
        return found if self.rsum is None else {**found, "rsum": self.rsum}

    def to_table(self) -> str:
        """The metrics as lines of text, a direction each, with what was ranked below."""
        directions = {name.replace("_", " "): each.to_dict() for name, each in self.directions.items()}
        names = list(dict.fromkeys(name for values in directions.values() for name in values))
        widths = [max(len(name), 6) for name in names]
        lines = [" " * 13 + "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))]
        for direction, values in directions.items():
            cells = [_cell(name, values[name]) if name in values else "" for name in names]
            row = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            lines.append(f"{direction:13}{row}".rstrip())
        rsum = "" if self.rsum is None else f"rsum {self.rsum:.1f}; "
        lines.append(f"{rsum}{self._sizes()}, {self.metric}; ties against the model")
        return "\n".join(lines)

    def _sizes(self) -> str:
        """How many images and texts there were, as far as the evaluated directions tell."""
        units = {"image_to_text": ("images", "texts"), "text_to_image": ("texts", "images")}
        sizes: dict[str, int] = {}
        for name, direction in self.directions.items():
            queries, gallery = units[name]
            sizes.setdefault(queries, len(direction.ranks.queries))
            sizes[gallery] = direction.ranks.gallery_size
        return ", ".join(f"{sizes[unit]:,} {unit}" for unit in ("images", "texts"))


def evaluate_retrieval(
    image_embeddings: Tensor | NDArray[Any],
    text_embeddings: Tensor | NDArray[Any],
    image_labels: Tensor | NDArray[Any],
    text_labels: Tensor | NDArray[Any],
    ks: tuple[int, ...] = (1, 5, 10),
    metric: Metric = "cosine",
    metric_definition: MetricDefinition = "exact",
    extra: tuple[str, ...] = (),
    *,
    device: str = "cpu",
    progress: bool = False,
    directions: Sequence[Direction] = DIRECTIONS,
    distractors: bool = False,
) -> RetrievalResult:
    """Evaluate retrieval of texts by images and of images by texts, each item of the other side being ranked.

    image_embeddings [n, d], text_embeddings [m, d]: any float type, need not be normalised; mapped files are read in
    blocks.
    image_labels [n], text_labels [m]: integers; equal means match. An image appears once, however many texts match it.
    ks: cut-offs of Recall@K, positive; a k beyond the gallery gives 100.
    metric: "cosine" or "euclidean"; see `rank_positives` for zero rows and ties, which count against the model.
    metric_definition: "original" adds `mAP_original`, the short average precision of the released CMPL code.
    extra: further metrics by name, such as ("mINP", "nDCG", "AP@50").
    device: "cpu" or "cuda". progress: say what a long job will cost before it starts, and show a bar.
    directions: those that are evaluated, such as ("text_to_image",); the result has None for the other.
    distractors: True keeps rows that match nothing in the gallery, without asking for them; otherwise they are refused.
    Raises EvaluationInputError (a UserError and a ValueError) for NaN, mismatched shapes, labels that aren't integers,
    and a query without a positive, naming the row.
    """
    if not ks or any(not isinstance(k, int | np.integer) or k < 1 for k in ks):
        raise EvaluationInputError(f"ks are {ks!r}; expected one or more whole numbers from 1")
    if metric_definition not in get_args(MetricDefinition):
        raise EvaluationInputError(f"metric_definition is {metric_definition!r}; expected 'exact' or 'original'")
    for name in extra:
        check_metric(name)
    counting = prepare_counting(
        image_embeddings,
        text_embeddings,
        image_labels,
        text_labels,
        metric,
        device=device,
        directions=directions,
        distractors=distractors,
    )
    ranks, further = count_ranks(counting, progress=progress), dict.fromkeys(DIRECTIONS, extra)
    return result_of_ranks(ranks, metric, tuple(int(k) for k in ks), metric_definition, further)


def result_of_ranks(
    ranks: Mapping[Direction, PositiveRanks],
    metric: Metric = "cosine",
    ks: tuple[int, ...] = (1, 5, 10),
    metric_definition: MetricDefinition = "exact",
    extra: Mapping[Direction, tuple[str, ...]] | None = None,
) -> RetrievalResult:
    """The metrics of the ranks of one or both directions. extra: further metrics of each."""
    found = {
        direction: DirectionResult(each, ks, metric_definition, (extra or {}).get(direction, ()))
        for direction, each in ranks.items()
    }
    return RetrievalResult(found.get("image_to_text"), found.get("text_to_image"), metric)


def _cell(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "median_rank" and value.is_integer() else f"{value:.1f}"


def _mean_per_query(values: NDArray[np.float64], ranks: PositiveRanks) -> NDArray[np.float64]:
    return np.add.reduceat(values, ranks.offsets[:-1]) / ranks.positives
