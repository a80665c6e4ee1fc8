"""Intervals of retrieval metrics, paired differences and their permutation test, over clusters of queries.

The queries of one label are no independent draws (see `clusters`), so a mean's variance is that of the sums of its
clusters. Intervals of shares are score intervals (Wilson, JASA 1927) with the effective number of queries that this
variance amounts to (Kish, "Survey Sampling", 1965): for independent queries exactly Wilson's. Where nearly all queries
agree their variance tells nothing; so, as Agresti and Coull (The American Statistician, 1998) add two hits and two
misses, it is taken of the clusters and of such a number of typical clusters that are found, and missed, as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from crosspair.evaluation.clusters import RANKS, RSUM, Clusters, ClusterSums, Floats, Name
from crosspair.evaluation.protocols import Evaluation

LEVEL = 95
PERMUTATIONS = 10_000
FEW = 50  # clusters, below which a result comes with a warning
_FEWEST = 1_000
_TOSSES = 200_000_000  # in all; more than 20,000 clusters are tossed less often, as millions would take hours
_ENTRIES = 2_000_000  # of a block of tosses: about 16 MB at once
_Z = NormalDist().inv_cdf((100 + LEVEL) / 200)
_ADDED = _Z**2 / 2  # clusters found, and as many missed: two of each at 95 per cent
_ROUNDING = 1e-9

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Intervals of 95 per cent for every metric of both directions, and for rsum under ("", "rsum").

    clusters: how many labels the queries come from. unit: what these are, say "pictures" or "persons".
    fewest: the number of clusters of the direction that has fewer.
    """

    bounds: dict[Name, Bounds]
    clusters: int
    unit: str
    fewest: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, by direction and metric."""
        directions: dict[str, Any] = {}
        for (direction, name), bounds in self.bounds.items():
            if direction:
                directions.setdefault(direction, {})[name] = list(bounds)
        rsum = {"rsum": list(self.bounds[RSUM])} if RSUM in self.bounds else {}
        return {"level": LEVEL, "clusters": self.clusters, "unit": self.unit, **directions, **rsum}

    def to_table(self, evaluation: Evaluation) -> str:
        """Lines of text: what the protocol reports, with its interval, and a warning where the queries are few."""
        lines = [f"{LEVEL} % intervals ({self.clusters:,} {self.unit} drawn with all of their queries)"]
        for direction, result in evaluation.result.directions.items():
            names = [name for where, name in evaluation.main if where == direction]
            cells = (f"{name} {result.value(name):.1f} {_bracket(self.bounds[direction, name])}" for name in names)
            if names:
                lines.append(f"{direction.replace('_', ' '):13}  " + "  ".join(cells))
        return "\n".join([*lines, *few_clusters(self.fewest, self.unit)])


@dataclass(frozen=True)
class Difference:
    """A metric of one group of runs minus that of another, on the same queries.

    low, high: its interval. p: how often a difference at least as large comes about when each cluster's results are
    swapped between the two by a coin (two-sided; never 0, at least 1 / (permutations + 1)).
    """

    value: float
    low: float
    high: float
    p: float


def few_clusters(count: int, unit: str) -> list[str]:
    """A line that warns of fewer than 50 clusters, none for more."""
    if count >= FEW:
        return []
    return [
        f"warning: the queries come from {count} {unit} only, expected {FEW} or more: another draw may give quite "
        "different numbers; report the intervals with them"
    ]


def enough_permutations(clusters: int) -> int:
    """Number of permutations: 10,000, or down to 1,000 where there are more than 20,000 clusters."""
    return min(PERMUTATIONS, max(_FEWEST, _TOSSES // clusters))


def intervals_of(evaluation: Evaluation) -> Intervals:
    """Intervals for all metrics of an evaluation, in time proportional to its queries."""
    directions = evaluation.result.directions
    names = [(direction, name) for direction, result in directions.items() for name in result.names]
    clusters = Clusters.of(evaluation)
    return Intervals(group_intervals([evaluation], names), clusters.count, evaluation.cluster_unit, clusters.fewest)


def group_intervals(runs: Sequence[Evaluation], names: Sequence[Name]) -> dict[Name, Bounds]:
    """Intervals by name for the mean over runs on the same queries, over the draw of queries; rsum included.

    The median rank is that of a single run.
    """
    sums = ClusterSums.of(runs, [name for name in names if name[1] != "median_rank"])
    found = {}
    for name, columns in sums.groups.items():
        if name[1] in RANKS:
            gallery = runs[0].result.directions[name[0]].ranks.gallery_size
            found[name] = _mean_rank_interval(sums, columns[0], gallery)
        else:
            found[name] = _times(_share_interval(sums, columns)[0], 100.0 * len(columns))
    medians = {name: _median_interval(runs[0], name) for name in names if name[1] == "median_rank"}
    return {name: (found | medians)[name] for name in (*names, RSUM) if name in found or name in medians}


def differences(
    ours: Sequence[Evaluation],
    theirs: Sequence[Evaluation],
    names: Sequence[Name],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[Name, Difference]:
    """Differences between the mean metrics of two groups of runs, rsum included.

    All runs were evaluated on the same queries, in the same order. names: metrics that are means.
    """
    paired = ClusterSums.of(ours, names, theirs)
    groups = paired.groups
    tossed = _tossed(np.stack([paired.shares(columns) for columns in groups.values()], 1), permutations, seed)
    found = {}
    for (name, columns), permuted in zip(groups.items(), tossed.T, strict=True):
        value = float(paired.shares(columns).sum())
        # what differs in rounding only is as large
        reached = np.count_nonzero(abs(permuted) >= abs(value) - _ROUNDING)
        low, high = _difference_interval(paired, columns, bounded=name[1] not in RANKS)
        unit = 1.0 if name[1] in RANKS else 100.0
        found[name] = Difference(value * unit, low * unit, high * unit, (1 + reached) / (1 + permutations))
    return found


def _share_interval(sums: ClusterSums, columns: list[int]) -> tuple[Bounds, float]:
    """The interval of the mean of some shares' means, and the effective number of queries that it was made with."""
    means, _, typical = _weights(sums, columns)
    grown = 1 + 2 * _ADDED * typical
    drawn_in = (means + _ADDED * typical) / grown
    deviations = _deviations(sums, columns, drawn_in)
    middle = drawn_in.mean()
    added = _ADDED * typical**2 * ((1 - middle) ** 2 + middle**2)
    variance = (np.square(deviations).sum() + added) / grown**2
    effective = float(middle * (1 - middle) / variance / grown)
    return _wilson(float(means.mean()), effective), effective


def _difference_interval(paired: ClusterSums, columns: list[int], *, bounded: bool) -> Bounds:
    """The interval of a sum of differences of means, each from -1 to 1 where they are bounded.

    Bounded, the clusters get two more: one that the first group wins, and one that it loses, as Bonett and Price
    (Journal of Educational and Behavioral Statistics, 2012) do for paired shares. They differ by the root mean square
    of the clusters that differ at all and of two that differ as far as can be: where next to none differs, that none
    does tells little. Rankings that are the same in all have no difference and no width.
    """
    if paired.identical:
        return 0.0, 0.0
    means, weight, typical = _weights(paired, columns)
    contributions = paired.shares(columns) / len(columns)
    differing = np.count_nonzero(contributions)
    apart = np.sqrt((np.square(contributions / typical).sum() + 2) / (differing + 2))
    added = 1.0 if bounded else 0.0
    grown = 1 + 2 * added * typical
    drawn_in = means / grown
    middle = drawn_in.mean()
    more = added * typical**2 * ((apart - middle) ** 2 + (apart + middle) ** 2)
    variance = np.square(_deviations(paired, columns, drawn_in)).sum() + more
    times = _Z
    if not bounded:
        variance *= len(weight) / max(1, len(weight) - 1)
        times = _student(len(weight) - 1)
    half = float(times * np.sqrt(variance) / grown)
    low, high = float(middle) - half, float(middle) + half
    if bounded:
        low, high = max(low, -1.0), min(high, 1.0)
    value = float(means.mean())
    return min(low, value) * len(columns), max(high, value) * len(columns)


def _weights(sums: ClusterSums, columns: list[int]) -> tuple[Floats, Floats, float]:
    """The means of some metrics, each cluster's share of their queries [clusters], and that of a typical cluster.

    The typical one is as large as the one that a query finds itself in on average: of clusters of equal size each is.
    """
    totals = sums.counts[:, columns].sum(0)
    weight = (sums.counts[:, columns] / totals).mean(1)
    return sums.sums[:, columns].sum(0) / totals, weight, float(np.square(weight).sum())


def _deviations(sums: ClusterSums, columns: list[int], means: Floats) -> Floats:
    """How far each cluster moves the mean of some metrics' means [clusters]: a ratio estimator's linearised terms."""
    totals = sums.counts[:, columns].sum(0)
    deviations: Floats = ((sums.sums[:, columns] - means * sums.counts[:, columns]) / totals).mean(1)
    return deviations


def _wilson(share: float, queries: float) -> Bounds:
    """The score interval of a share of `queries` independent ones, in which it lies."""
    grown = 1 + _Z**2 / queries
    middle = (share + _Z**2 / (2 * queries)) / grown
    half = _Z * np.sqrt(share * (1 - share) / queries + _Z**2 / (4 * queries**2)) / grown
    return max(0.0, min(share, float(middle - half))), min(1.0, max(share, float(middle + half)))


def _mean_rank_interval(sums: ClusterSums, column: int, gallery_size: int) -> Bounds:
    """A t interval of the logarithm of a mean rank, as ranks have a long tail; by the delta method."""
    (mean,), weight, _ = _weights(sums, [column])
    clusters = len(weight)
    if clusters == 1:
        return 1.0, float(gallery_size)
    variance = np.square(_deviations(sums, [column], np.array([mean]))).sum() * clusters / (clusters - 1)
    factor = float(np.exp(_student(clusters - 1) * np.sqrt(variance) / mean))
    return max(1.0, float(mean) / factor), min(float(gallery_size), float(mean) * factor)


def _median_interval(run: Evaluation, name: Name) -> Bounds:
    """The ranks between which half of the queries may lie: Woodruff (JASA, 1952), by score intervals.

    Beyond the first and last query there are only the best and the worst rank of all.
    """
    result = run.result.directions[name[0]]
    ranks = np.sort(result.values(name[1]))
    at_most = result.ranks.first <= np.median(ranks)
    clusters = Clusters.of(run)
    cluster = clusters.of_queries[name[0]]
    counts = np.bincount(cluster, minlength=clusters.count).astype(np.float64)[:, None]
    found: Floats = np.bincount(cluster, at_most, minlength=clusters.count).astype(np.float64)
    sums = ClusterSums((name,), found[:, None], counts)
    _, effective = _share_interval(sums, [0])
    aside = _Z / (2 * np.sqrt(effective))
    low = int(np.floor(len(ranks) * (0.5 - aside))) - 1
    high = int(np.ceil(len(ranks) * (0.5 + aside)))
    return (
        float(ranks[low]) if low >= 0 else 1.0,
        float(ranks[high]) if high < len(ranks) else float(result.ranks.gallery_size),
    )


def _student(degrees: int) -> float:
    """The quantile of Student's t that belongs to LEVEL, by Cornish and Fisher's expansion: 2 per cent off at 3."""
    z, n = _Z, max(1, degrees)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def _tossed(shares: Floats, permutations: int, seed: int) -> Floats:
    """Sums over clusters of shares [clusters, numbers] as their signs are tossed [permutations, numbers]."""
    return np.concatenate([signs @ shares for signs in _signs(len(shares), permutations, seed)])


def _signs(clusters: int, permutations: int, seed: int) -> Iterator[Floats]:
    """Signs of the clusters in blocks of permutations; the same for the same seed and number of clusters."""
    random = np.random.default_rng(seed)
    step = max(1, _ENTRIES // clusters)
    for start in range(0, permutations, step):
        shape = (min(step, permutations - start), clusters)
        yield random.integers(0, 2, shape, np.int8).astype(np.float64) * 2 - 1


def _times(bounds: Bounds, unit: float) -> Bounds:
    return bounds[0] * unit, bounds[1] * unit


def _bracket(bounds: Bounds) -> str:
    return f"[{bounds[0]:.1f}, {bounds[1]:.1f}]"
