"""Retrieval metrics of image-text matching, in both directions: each is a mean (or median) of its values per query."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crosspair.evaluation.identical import warn_of_identical_rows
from crosspair.evaluation.inputs import EvaluationInputError, count_distractors
from crosspair.evaluation.per_query import RANKS, check_metric, values_of
from crosspair.evaluation.ranking import DIRECTIONS, Direction, Metric, PositiveRanks, count_ranks, prepare_counting

MetricDefinition = Literal["exact", "original"]


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
        return values_of(name, self.ranks)

    def value(self, name: str) -> float:
        """The metric of that name: the mean of its values in per cent, the mean or the median of the ranks."""
        values = self.values(name)
        if name in RANKS:
            return float(np.median(values) if name == "median_rank" else values.mean())
        return float(values.mean() * 100)

    def recall(self, k: int) -> float:
        """Percentage of queries with a positive among the first k items (all of them if k exceeds the gallery)."""
        return self.value(f"R@{k}")

    @property
    def tied(self) -> NDArray[np.bool_]:
        """Whether the rank of each query's first positive depends on how a tie is broken [queries]."""
        return np.asarray(self.ranks.first != self.ranks.optimistic)

    def ties(self) -> dict[str, Any]:
        """How much depends on ties, {} where nothing does.

        `queries`: how many are `tied`; `share`: the same in per cent; `R@K` for each of ks: [with every tie against the
        model, as it is reported, with every tie for it], in per cent.
        """
        if not self.tied.any():
            return {}
        recalls = {f"R@{k}": [self.recall(k), float((self.ranks.optimistic <= k).mean() * 100)] for k in self.ks}
        return {"queries": int(self.tied.sum()), "share": float(self.tied.mean() * 100), **recalls}

    def to_dict(self) -> dict[str, float]:
        """The metrics by name: recall and mean average precision in per cent, ranks of the first positive from 1.

        The median of an even number of ranks is the mean of the middle two. Then the extra ones.
        """
        return {name: self.value(name) for name in self.names}


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics of both directions: texts retrieved for an image, and images retrieved for a text.

    One of them is None when only the other was evaluated. distractors: how many images and how many texts match
    nothing, and are no queries.
    """

    image_to_text: DirectionResult | None
    text_to_image: DirectionResult | None
    metric: Metric = "cosine"
    distractors: tuple[int, int] = (0, 0)

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
        """The directions by name and the `rsum` of both, ready for JSON.

        Where the ranks of some queries depend on ties, also `ties`: `DirectionResult.ties` of these directions; and
        where some rows match nothing, `distractors`: how many `images` and `texts`.
        """
        found: dict[str, Any] = {name: direction.to_dict() for name, direction in self.directions.items()}
        ties = {name: direction.ties() for name, direction in self.directions.items() if direction.tied.any()}
        beside = {"rsum": self.rsum, "ties": ties or None, "distractors": self._alone() or None}
        return {**found, **{name: value for name, value in beside.items() if value is not None}}

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
        alone = ", ".join(f"{count:,} {what if count > 1 else what[:-1]}" for what, count in self._alone().items())
        lines += [f"in the gallery alone, as nothing matches them: {alone}"] if alone else []
        lines += [_ties_line(name, direction) for name, direction in self.directions.items() if direction.tied.any()]
        return "\n".join(lines)

    def _alone(self) -> dict[str, int]:
        return {what: count for what, count in zip(("images", "texts"), self.distractors, strict=True) if count}

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
    ks = check_options(ks, metric_definition, extra)
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
    for rows, labels, name in zip(
        counting.embeddings, counting.labels, ("image_embeddings", "text_embeddings"), strict=True
    ):
        warn_of_identical_rows(rows, labels, name)
    ranks, further = count_ranks(counting, progress=progress), dict.fromkeys(DIRECTIONS, extra)
    alone = count_distractors(*counting.labels)
    return result_of_ranks(ranks, metric, ks, metric_definition, further, alone)


def check_options(ks: Sequence[int], metric_definition: MetricDefinition, extra: Sequence[str]) -> tuple[int, ...]:
    """The cut-offs. Raises EvaluationInputError for what `evaluate_retrieval` doesn't take."""
    if isinstance(ks, str) or not isinstance(ks, Iterable) or not (cuts := list(ks)) or not all(map(_is_cut, cuts)):
        raise EvaluationInputError(f"ks are {ks!r}; expected one or more whole numbers from 1, such as (1, 5, 10)")
    if metric_definition not in get_args(MetricDefinition):
        raise EvaluationInputError(f"metric_definition is {metric_definition!r}; expected 'exact' or 'original'")
    if isinstance(extra, str) or not isinstance(extra, Iterable):
        raise EvaluationInputError(f"extra is {extra!r}; expected a tuple of names, such as ('mINP', 'nDCG@10')")
    for name in extra:
        check_metric(name)
    return tuple(map(int, cuts))


def _is_cut(k: Any) -> bool:
    return isinstance(k, int | np.integer) and not isinstance(k, bool) and int(k) >= 1


def result_of_ranks(
    ranks: Mapping[Direction, PositiveRanks],
    metric: Metric = "cosine",
    ks: tuple[int, ...] = (1, 5, 10),
    metric_definition: MetricDefinition = "exact",
    extra: Mapping[Direction, tuple[str, ...]] | None = None,
    distractors: tuple[int, int] = (0, 0),
) -> RetrievalResult:
    """The metrics of the ranks of one or both directions. extra: further metrics of each."""
    found = {
        direction: DirectionResult(each, ks, metric_definition, (extra or {}).get(direction, ()))
        for direction, each in ranks.items()
    }
    return RetrievalResult(found.get("image_to_text"), found.get("text_to_image"), metric, distractors)


def _cell(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "median_rank" and value.is_integer() else f"{value:.1f}"


def _ties_line(name: str, direction: DirectionResult) -> str:
    """How much of a direction depends on ties, and how far its recalls do."""
    ties = direction.ties()
    ranges = ((f"R@{k}", *(f"{value:.1f}" for value in ties[f"R@{k}"])) for k in direction.ks)
    differing = ", ".join(f"{recall} {low} to {high}" for recall, low, high in ranges if low != high)
    queries = "1 query" if ties["queries"] == 1 else f"{ties['queries']:,} queries"
    share = f"{ties['share']:.1f}" if ties["share"] >= 0.05 else "less than 0.1"
    return f"ties, {name.replace('_', ' ')}: the rank of {queries} ({share} %) depends on them, " + (
        f"{differing} with all against the model and all for it" if differing else "none of these recalls does"
    )
