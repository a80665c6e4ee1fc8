"""Cluster bootstrap intervals, paired differences and permutation tests of retrieval metrics.

The queries of one image are no independent draws: its five captions are found or missed together. So images are
drawn, each with all of its queries in both directions (a cluster bootstrap; Davison and Hinkley, "Bootstrap Methods and
their Application", 1997, section 3.8).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.protocols import Evaluation

RESAMPLES = 10_000
_FEWEST = 1_000
_DRAWS = 200_000_000  # in all; more than 20,000 clusters are drawn less often, as millions would take hours
LEVEL = 95
RSUM = ("", "rsum")
_ENTRIES = 2_000_000  # of a block of resamples: about 64 MB at once

Name = tuple[str, str]  # direction and metric
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """Percentile intervals of 95 per cent for every metric of both directions, and for rsum under ("", "rsum").

    clusters: how many images (or labels) were drawn from.
    """

    bounds: dict[Name, tuple[float, float]]
    clusters: int
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, by direction and metric."""
        facts = {"level": LEVEL, "clusters": self.clusters, "resamples": self.resamples, "seed": self.seed}
        directions: dict[str, Any] = {}
        for (direction, name), bounds in self.bounds.items():
            if direction:
                directions.setdefault(direction, {})[name] = list(bounds)
        rsum = {"rsum": list(self.bounds[RSUM])} if RSUM in self.bounds else {}
        return {**facts, **directions, **rsum}

    def to_table(self, evaluation: Evaluation) -> str:
        """Lines of text: what the protocol reports, with its interval."""
        drawn = f"{self.clusters:,} clusters of queries drawn {self.resamples:,} times"
        lines = [f"{LEVEL} % intervals ({drawn})"]
        for direction in dict.fromkeys(direction for direction, _ in evaluation.main):
            names = [name for where, name in evaluation.main if where == direction]
            values = [(name, evaluation.result.directions[direction].value(name)) for name in names]
            cells = (f"{name} {value:.1f} {_bracket(self.bounds[direction, name])}" for name, value in values)
            lines.append(f"{direction.replace('_', ' '):13}  " + "  ".join(cells))
        return "\n".join(lines)


@dataclass(frozen=True)
class Difference:
    """A metric of one group of runs minus that of another, on the same queries.

    low, high: its interval. p: how often a difference at least as large comes about when each image's results are
    swapped between the two by a coin (two-sided; never 0, at least 1 / (resamples + 1)).
    """

    value: float
    low: float
    high: float
    p: float


def enough_resamples(clusters: int) -> int:
    """Number of resamples: 10,000, or down to 1,000 where there are more than 20,000 clusters."""
    return min(RESAMPLES, max(_FEWEST, _DRAWS // clusters))


def bootstrap(evaluation: Evaluation, resamples: int | None = None, seed: int = 0) -> Intervals:
    """Intervals for all metrics of an evaluation. One cluster alone gives intervals without width.

    resamples: None for `enough_resamples`.
    """
    names = _all_names(evaluation)
    means = [name for name in names if name[1] != "median_rank"]
    sums = ClusterSums.of([evaluation], means)
    resamples = resamples or enough_resamples(len(sums.counts))
    draws = partial(_draws, len(sums.counts), resamples, seed)
    samples = {
        **sums.resample(draws),
        **{name: _medians(evaluation, name, draws) for name in names if name not in means},
    }
    reported = names if evaluation.result.rsum is None else [*names, RSUM]
    bounds = {name: _bounds(samples[name]) for name in reported}
    return Intervals(bounds, len(sums.counts), resamples, seed)


@dataclass(frozen=True)
class ClusterSums:
    """Sums of metrics over the queries of each cluster, for metrics that are means.

    names: of the metrics. sums, counts [clusters, metrics]: of the values, in per cent or ranks, and of the queries.
    """

    names: tuple[Name, ...]
    sums: Floats
    counts: Floats

    @classmethod
    def of(cls, runs: Sequence[Evaluation], names: Sequence[Name]) -> "ClusterSums":
        """The mean over runs that were evaluated on the same queries; the first one's clusters are taken."""
        clusters = _clusters(runs[0])
        number = 1 + max(int(each.max()) for each in clusters.values())
        sums, counts = [], []
        for direction, name in names:
            values = np.mean([_values(run, direction, name) for run in runs], axis=0)
            sums.append(np.bincount(clusters[direction], values, minlength=number))
            counts.append(np.bincount(clusters[direction], minlength=number))
        return cls(tuple(names), np.stack(sums, 1), np.stack(counts, 1).astype(np.float64))

    def minus(self, other: "ClusterSums") -> "ClusterSums":
        """The sums of the differences, query by query."""
        return ClusterSums(self.names, self.sums - other.sums, self.counts)

    def values(self) -> dict[Name, float]:
        """The metrics themselves, with rsum."""
        means = self.sums.sum(0) / self.counts.sum(0)
        return {name: float(value[0]) for name, value in self._with_rsum(means[None]).items()}

    def resample(self, draws: Callable[[], Iterator[Floats]]) -> dict[Name, Floats]:
        """The metrics and rsum of every resample [resamples]; NaN where one has no query of a direction."""
        with np.errstate(invalid="ignore"):
            return self._with_rsum(np.concatenate([(w @ self.sums) / (w @ self.counts) for w in draws()]))

    def permute(self, resamples: int, seed: int) -> dict[Name, Floats]:
        """The metrics and rsum when the sign of each cluster is tossed [resamples]; for differences."""
        shares = self.sums / self.counts.sum(0)
        signs = _blocks(
            len(shares), resamples, seed, lambda random, shape: random.integers(0, 2, shape, np.int8) * 2 - 1
        )
        return self._with_rsum(np.concatenate([block.astype(np.float64) @ shares for block in signs]))

    def _with_rsum(self, values: Floats) -> dict[Name, Floats]:
        recalls = [column for column, (_, name) in enumerate(self.names) if name.startswith("R@")]
        return {**dict(zip(self.names, values.T, strict=True)), RSUM: values[:, recalls].sum(1)}


def differences(
    ours: Sequence[Evaluation],
    theirs: Sequence[Evaluation],
    names: Sequence[Name],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Name, Difference]:
    """Differences between the mean metrics of two groups of runs, rsum included.

    All runs were evaluated on the same queries. names: metrics that are means.
    """
    paired = ClusterSums.of(ours, names).minus(ClusterSums.of(theirs, names))
    values = paired.values()
    resampled = paired.resample(partial(_draws, len(paired.counts), resamples, seed))
    permuted = paired.permute(resamples, seed)
    found = {}
    for name, value in values.items():
        # what differs in rounding only is as large
        reached = np.count_nonzero(abs(permuted[name]) >= abs(value) - 1e-9)
        found[name] = Difference(value, *_bounds(resampled[name]), (1 + reached) / (1 + resamples))
    return found


def group_intervals(
    runs: Sequence[Evaluation], names: Sequence[Name], resamples: int = RESAMPLES, seed: int = 0
) -> Any:
    """Intervals by name for the mean over runs on the same queries; rsum included. names: metrics that are means."""
    sums = ClusterSums.of(runs, names)
    samples = sums.resample(partial(_draws, len(sums.counts), resamples, seed))
    return {name: _bounds(sample) for name, sample in samples.items()}


def _all_names(evaluation: Evaluation) -> list[Name]:
    return [(direction, name) for direction, each in evaluation.result.directions.items() for name in each.names]


def _values(evaluation: Evaluation, direction: str, name: str) -> NDArray[Any]:
    values: NDArray[Any] = evaluation.result.directions[direction].values(name)
    return values if name.endswith("rank") else values * 100.0


def _clusters(evaluation: Evaluation) -> dict[str, NDArray[np.intp]]:
    """The clusters of each direction's queries, numbered from 0."""
    both = np.concatenate([evaluation.image_clusters, evaluation.text_clusters])
    number = np.unique(both, return_inverse=True)[1]
    split = len(evaluation.image_clusters)
    both_directions = {"image_to_text": number[:split], "text_to_image": number[split:]}
    return {name: both_directions[name] for name in evaluation.result.directions}


def _medians(evaluation: Evaluation, name: Name, draws: Callable[[], Iterator[Floats]]) -> Floats:
    """The median of a direction's values in every resample; of an even number the mean of the middle two."""
    direction, metric = name
    values = _values(evaluation, direction, metric)
    order = np.argsort(values)
    cluster, values = _clusters(evaluation)[direction][order], values[order]
    medians = []
    step = max(1, _ENTRIES // len(values))
    for block in draws():
        for start in range(0, len(block), step):
            seen = block[start : start + step].astype(np.int32)[:, cluster].cumsum(1)
            total = seen[:, -1:]
            middle = [np.minimum((seen <= place).sum(1), len(values) - 1) for place in ((total - 1) // 2, total // 2)]
            medians.append(np.where(total[:, 0] > 0, (values[middle[0]] + values[middle[1]]) / 2, np.nan))
    return np.concatenate(medians)


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Counts of each cluster in each resample [block, clusters], as many draws as there are clusters."""

    def count(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
        drawn = random.integers(0, clusters, shape) + np.arange(shape[0])[:, None] * clusters
        return np.bincount(drawn.ravel(), minlength=shape[0] * clusters).reshape(shape).astype(np.float64)

    return _blocks(clusters, resamples, seed, count)


def _blocks(
    clusters: int, resamples: int, seed: int, draw: Callable[[np.random.Generator, tuple[int, int]], Any]
) -> Iterator[Any]:
    """`resamples` rows in blocks; the same for the same seed and number of clusters."""
    random = np.random.default_rng(seed)
    step = max(1, _ENTRIES // clusters)
    for start in range(0, resamples, step):
        yield draw(random, (min(step, resamples - start), clusters))


def _bounds(samples: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(samples, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _bracket(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:.1f}, {bounds[1]:.1f}]"
