"""Clusters of queries: those of one label, which are found or missed together and are therefore drawn together.

The five captions of an image are no independent draws, and neither are the images of a person or of a class. What is
drawn at random is the label: an image where each image has a label of its own, a person or a class where images share
one. Both directions have the same clusters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.protocols import Evaluation

RSUM = ("", "rsum")
RANKS = ("median_rank", "mean_rank")

Name = tuple[str, str]  # direction and metric
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Clusters:
    """The cluster of every query, by direction, numbered from 0 in the order that queries are first met in.

    So two evaluations of the same queries have the same clusters, however their labels are numbered.
    """

    of_queries: Mapping[str, NDArray[np.intp]]
    count: int

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Clusters":
        """The labels of an evaluation's queries."""
        labels = evaluation.query_labels
        _, first, number = np.unique(np.concatenate(list(labels.values())), return_index=True, return_inverse=True)
        number = np.argsort(np.argsort(first))[number]
        ends = np.cumsum([len(each) for each in labels.values()])
        return cls(dict(zip(labels, np.split(number, ends[:-1]), strict=True)), len(first))

    @property
    def fewest(self) -> int:
        """The number of clusters that the queries of a direction come from, the smaller of both directions."""
        return min(len(np.unique(each)) for each in self.of_queries.values())

    def same_as(self, other: "Clusters") -> bool:
        """Whether these are the clusters of the same queries, in the same directions."""
        mine, theirs = self.of_queries, other.of_queries
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


@dataclass(frozen=True)
class ClusterSums:
    """Sums of metrics over the queries of each cluster, for metrics that are means.

    names: of the metrics. sums, counts [clusters, metrics]: of the values, which are shares from 0 to 1 or ranks, and
    of the queries. identical: whether these are differences between runs that rank everything alike.
    """

    names: tuple[Name, ...]
    sums: Floats
    counts: Floats
    identical: bool = False

    @classmethod
    def of(cls, runs: Sequence[Evaluation], names: Sequence[Name], against: Sequence[Evaluation] = ()) -> "ClusterSums":
        """The mean over runs that were evaluated on the same queries, less that over the runs of `against`."""
        clusters = Clusters.of(runs[0])
        sums, counts = [], []
        for direction, name in names:
            values = _mean_values(runs, direction, name)
            if against:
                values = values - _mean_values(against, direction, name)
            cluster = clusters.of_queries[direction]
            sums.append(np.bincount(cluster, values, minlength=clusters.count))
            counts.append(np.bincount(cluster, minlength=clusters.count))
        identical = len(runs) == len(against) and all(map(_rank_alike, runs, against))
        return cls(tuple(names), np.stack(sums, 1), np.stack(counts, 1).astype(np.float64), identical)

    @property
    def groups(self) -> dict[Name, list[int]]:
        """The columns that each reported number is made of: its own, and for rsum all recalls of both directions."""
        recalls = [column for column, (_, name) in enumerate(self.names) if name.startswith("R@")]
        rsum = {RSUM: recalls} if len({self.names[column][0] for column in recalls}) > 1 else {}
        return {**{name: [column] for column, name in enumerate(self.names)}, **rsum}

    def shares(self, columns: list[int]) -> Floats:
        """What each cluster adds to the sum of some metrics [clusters]; their sum is that number."""
        totals = self.counts[:, columns].sum(0)
        shares: Floats = (self.sums[:, columns] / totals).sum(1)
        return shares


def _mean_values(runs: Sequence[Evaluation], direction: str, name: str) -> Floats:
    values: Floats = np.mean([run.result.directions[direction].values(name) for run in runs], axis=0)
    return values


def _rank_alike(one: Evaluation, other: Evaluation) -> bool:
    """Whether every positive of every query has the same rank in both."""
    both = zip(one.result.directions.values(), other.result.directions.values(), strict=True)
    return all(np.array_equal(mine.ranks.ranks, theirs.ranks.ranks) for mine, theirs in both)
