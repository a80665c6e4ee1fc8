"""Several runs of one thing, such as seeds, on the same queries: each one's metrics, their mean and its interval."""

from collections.abc import Sequence

import numpy as np

from crosspair.evaluation.clusters import RSUM, Clusters, Name
from crosspair.evaluation.protocols import Evaluation
from crosspair.evaluation.uncertainty import LEVEL, few_clusters, group_intervals


def several_table(names: Sequence[str], evaluations: Sequence[Evaluation]) -> str:
    """Lines of text: the reported metrics of each run, their mean ± standard deviation, and the interval of the mean.

    evaluations: two or more, of the same queries by the same protocol. The standard deviation is that over the runs,
    with n - 1. The interval is over the draw of queries, as for a single run.
    """
    reported = [name for name in evaluations[0].main if name[1] != "median_rank"]
    intervals = group_intervals(evaluations, reported)
    shown: list[Name] = [*reported, RSUM] if RSUM in intervals else reported
    values = np.array([[_value(each, name) for name in shown] for each in evaluations])
    spread = zip(values.mean(0), values.std(0, ddof=1), strict=True)
    rows = [
        *([name, *(f"{value:.1f}" for value in row)] for name, row in zip(names, values, strict=True)),
        ["mean ± sd", *(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in spread)],
        [f"{LEVEL} % of mean", *("[{:.1f}, {:.1f}]".format(*intervals[name]) for name in shown)],
    ]
    directions = [direction.replace("_", " ") for direction, _ in shown]
    firsts = [name if place == 0 or directions[place - 1] != name else "" for place, name in enumerate(directions)]
    header = [["", *firsts], ["", *(name for _, name in shown)]]
    clusters = Clusters.of(evaluations[0])
    return "\n".join([*_aligned([*header, *rows]), *few_clusters(clusters.fewest, evaluations[0].cluster_unit)])


def _value(evaluation: Evaluation, name: Name) -> float | None:
    direction, metric = name
    return evaluation.result.directions[direction].value(metric) if direction else evaluation.result.rsum


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows[1:]) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((f"{name:<{widths[0]}}", *padded)).rstrip())
    return lines
