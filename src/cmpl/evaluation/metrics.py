"""Retrieval metrics of image-text matching: Recall@K, mean average precision, ranks, in both directions."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cmpl.evaluation.inputs import EvaluationInputError
from cmpl.evaluation.ranking import Metric, PositiveRanks, rank_positives

MetricDefinition = Literal["exact", "original"]


@dataclass(frozen=True)
class DirectionResult:
    """Metrics of one direction, all of them means over the queries of values that are kept per query.

    ranks: of all positives of all queries.
    ks: the cut-offs of Recall@K.
    metric_definition: "original" adds the average precision of the released CMPL code to `to_dict`.
    """

    ranks: PositiveRanks
    ks: tuple[int, ...] = (1, 5, 10)
    metric_definition: MetricDefinition = "exact"

    def recall(self, k: int) -> float:
        """Percentage of queries with a positive among the first k items (all of them if k exceeds the gallery)."""
        return float((self.ranks.first <= k).mean() * 100)

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
        ranks = self.ranks
        hit = np.arange(len(ranks.ranks)) - np.repeat(ranks.offsets[:-1], ranks.positives) + 1
        rank = ranks.ranks - ranks.hits + hit
        return _mean_per_query((hit - (rank > 1)) / rank, ranks)

    def to_dict(self) -> dict[str, float]:
        """The metrics by name: recall and mean average precision in per cent, ranks of the first positive from 1.

        The median of an even number of ranks is the mean of the middle two.
        """
        values = {f"R@{k}": self.recall(k) for k in self.ks}
        values["mAP"] = float(self.average_precision.mean() * 100)
        if self.metric_definition == "original":
            values["mAP_original"] = float(self.original_average_precision.mean() * 100)
        values["median_rank"] = float(np.median(self.ranks.first))
        values["mean_rank"] = float(self.ranks.first.mean())
        return values


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics of both directions: texts retrieved for an image, and images retrieved for a text."""

    image_to_text: DirectionResult
    text_to_image: DirectionResult
    metric: Metric = "cosine"

    @property
    def rsum(self) -> float:
        """Sum of all recalls of both directions, in per cent."""
        return sum(direction.recall(k) for direction in (self.image_to_text, self.text_to_image) for k in direction.ks)

    def to_dict(self) -> dict[str, Any]:
        """Both directions by name and their `rsum`, ready for JSON."""
        return {
            "image_to_text": self.image_to_text.to_dict(),
            "text_to_image": self.text_to_image.to_dict(),
            "rsum": self.rsum,
        }

    def to_table(self) -> str:
        """The metrics as lines of text, a direction each, with what was ranked below."""
        directions = {"image to text": self.image_to_text.to_dict(), "text to image": self.text_to_image.to_dict()}
        names = list(directions["image to text"])
        widths = [max(len(name), 6) for name in names]
        lines = [" " * 13 + "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))]
        for direction, values in directions.items():
            cells = (
                f"{values[name]:.0f}" if name == "median_rank" and values[name].is_integer() else f"{values[name]:.1f}"
                for name in names
            )
            lines.append(f"{direction:13}" + "".join(f"  {c:>{width}}" for c, width in zip(cells, widths, strict=True)))
        images, texts = self.text_to_image.ranks.gallery_size, self.image_to_text.ranks.gallery_size
        lines.append(f"rsum {self.rsum:.1f}; {images:,} images, {texts:,} texts, {self.metric}; ties against the model")
        return "\n".join(lines)


def evaluate_retrieval(
    image_embeddings: Tensor | NDArray[Any],
    text_embeddings: Tensor | NDArray[Any],
    image_labels: Tensor | NDArray[Any],
    text_labels: Tensor | NDArray[Any],
    ks: tuple[int, ...] = (1, 5, 10),
    metric: Metric = "cosine",
    metric_definition: MetricDefinition = "exact",
) -> RetrievalResult:
    """Evaluate retrieval of texts by images and of images by texts, each item of the other side being ranked.

    image_embeddings [n, d], text_embeddings [m, d]: any float type, need not be normalised.
    image_labels [n], text_labels [m]: integers; equal means match. A picture appears once, however many texts match it.
    ks: cut-offs of Recall@K, positive; a k beyond the gallery gives 100.
    metric: "cosine" or "euclidean"; see `rank_positives` for zero rows and ties, which count against the model.
    metric_definition: "original" adds `mAP_original`, the short average precision of the released CMPL code.
    Raises EvaluationInputError (a UserError and a ValueError) for NaN, mismatched shapes, labels that aren't integers,
    and a query without a positive, naming the row.
    """
    if not ks or any(not isinstance(k, int | np.integer) or k < 1 for k in ks):
        raise EvaluationInputError(f"ks are {ks!r}; expected one or more whole numbers from 1")
    if metric_definition not in get_args(MetricDefinition):
        raise EvaluationInputError(f"metric_definition is {metric_definition!r}; expected 'exact' or 'original'")
    image_to_text, text_to_image = rank_positives(image_embeddings, text_embeddings, image_labels, text_labels, metric)
    ks = tuple(int(k) for k in ks)
    return RetrievalResult(
        DirectionResult(image_to_text, ks, metric_definition),
        DirectionResult(text_to_image, ks, metric_definition),
        metric,
    )


def _mean_per_query(values: NDArray[np.float64], ranks: PositiveRanks) -> NDArray[np.float64]:
    return np.add.reduceat(values, ranks.offsets[:-1]) / ranks.positives
