"""Runs evaluated on the same queries, side by side: means over seeds, intervals, paired differences and their test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosspair.errors import UserError
from crosspair.evaluation.clusters import RSUM, Clusters, Name
from crosspair.evaluation.protocols import Evaluation
from crosspair.evaluation.results import StoredResult
from crosspair.evaluation.uncertainty import (
    Difference,
    differences,
    enough_permutations,
    group_intervals,
)


@dataclass(frozen=True)
class Row:
    """A group of runs that differ in their seeds alone, or a single run.

    values: each run's metrics, by name, as many as runs. intervals: of their mean, over the queries.
    differences: of their mean to that of the first group; empty for the first.
    """

    name: str
    seeds: tuple[int | None, ...]
    values: dict[Name, tuple[float, ...]]
    intervals: dict[Name, tuple[float, float]]
    differences: dict[Name, Difference]

    def mean(self, name: Name) -> float:
        return float(np.mean(self.values[name]))

    def deviation(self, name: Name) -> float | None:
        """The standard deviation over seeds (n - 1 in the denominator); None for a single run."""
        return float(np.std(self.values[name], ddof=1)) if len(self.values[name]) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Rows of groups, the first being what the others are compared with, over the same metrics.

    clusters: how many labels the queries come from. unit: what these are, say "pictures" or "persons". fewest: how
    many labels those of the direction with fewer come from.
    """

    rows: tuple[Row, ...]
    names: tuple[Name, ...]
    protocol: str
    split: str
    clusters: int
    unit: str
    fewest: int
    permutations: int


def compare(results: Sequence[StoredResult], permutations: int | None = None, seed: int = 0) -> Comparison:
    """Compare results in their order, the seeds of one recipe as a group.

    permutations: of the test, None for `enough_permutations`.

    Raises UserError unless there are two or more, each once, of the same queries and protocol.
    """
    _check_comparable(results)
    groups = _groups(results)
    first = [result.evaluation for result in groups[0][1]]
    reported = tuple(name for name in first[0].main if name[1] != "median_rank")
    names = (*reported, RSUM) if sum(name.startswith("R@") for _, name in reported) > 3 else reported
    clusters = Clusters.of(first[0])
    permutations = permutations or enough_permutations(clusters.count)
    rows: list[Row] = []
    for name, members in groups:
        runs = [result.evaluation for result in members]
        each = [_values(run, reported) for run in runs]
        intervals = group_intervals(runs, reported)
        compared = differences(runs, first, reported, permutations, seed) if rows else {}
        rows.append(
            Row(
                name,
                tuple(result.facts.get("seed") for result in members),
                {metric: tuple(values[metric] for values in each) for metric in names},
                {metric: intervals[metric] for metric in names},
                {metric: compared[metric] for metric in names} if compared else {},
            )
        )
    facts = results[0].facts
    return Comparison(
        tuple(rows),
        names,
        facts["protocol"],
        str(facts.get("split", "")),
        clusters.count,
        first[0].cluster_unit,
        clusters.fewest,
        permutations,
    )


def _values(run: Evaluation, names: Sequence[Name]) -> dict[Name, float]:
    values = {(direction, name): run.result.directions[direction].value(name) for direction, name in names}
    return {**values, RSUM: sum(value for (_, name), value in values.items() if name.startswith("R@"))}


def _check_comparable(results: Sequence[StoredResult]) -> None:
    if len(results) < 2:
        raise UserError(f"found {len(results)} result to compare; expected two or more runs")
    first = results[0]
    for result in results[1:]:
        for key, what in (("protocol", "by protocol"), ("metric", "by")):
            if result.facts.get(key) != first.facts.get(key):
                raise UserError(
                    f"{name_of(result)} was evaluated {what} {result.facts.get(key)}, {name_of(first)} {what} "
                    f"{first.facts.get(key)}; evaluate both alike"
                )
        for key, usual, what in (
            ("directions", "both", "in directions"),
            ("distractors", "refused", "with distractors"),
        ):
            ours, theirs = (each.facts.get(key, usual) for each in (first, result))
            if ours != theirs:
                raise UserError(
                    f"{name_of(result)} was evaluated {what}: {theirs}, {name_of(first)} {what}: {ours}; "
                    "evaluate both alike"
                )
        if result.facts.get("protocol_plugin") != first.facts.get("protocol_plugin"):
            raise UserError(
                f"{name_of(result)} and {name_of(first)} were evaluated by different versions of the protocol "
                f"{first.facts.get('protocol')}; evaluate both with the plugin as it is now"
            )
        _check_same_queries(first, result)
    paths = [result.path.resolve() for result in results]
    if len(set(paths)) < len(paths):
        again = next(result for place, result in enumerate(results) if paths[place] in paths[:place])
        raise UserError(f"{name_of(again)} is given twice; name each run once")


def _check_same_queries(first: StoredResult, result: StoredResult) -> None:
    """Raise UserError unless both are of the same queries in the same order, however their labels are numbered."""
    checksums = [each.facts["checksum"] for each in (first, result) if each.facts.get("checksum")]
    if len(set(checksums)) > 1 or result.facts.get("labels_checksum") != first.facts.get("labels_checksum"):
        raise UserError(
            f"{name_of(result)} was evaluated on other pictures or captions than {name_of(first)}; "
            "evaluate both on the same split of the same DATA"
        )
    both = [each.evaluation.result.directions for each in (first, result)]
    if both[0].keys() != both[1].keys():
        found = [" and ".join(each).replace("_", " ") for each in both]
        raise UserError(f"{name_of(result)} was evaluated {found[1]}, {name_of(first)} {found[0]}; evaluate both alike")
    same_galleries = all(
        one.ranks.gallery_size == other.ranks.gallery_size
        and np.array_equal(one.ranks.positives, other.ranks.positives)
        for one, other in zip(*(each.values() for each in both), strict=True)
    )
    if not same_galleries or not Clusters.of(first.evaluation).same_as(Clusters.of(result.evaluation)):
        raise UserError(
            f"{name_of(result)} was asked other queries than {name_of(first)}, or the same in another order; "
            "evaluate both on the same pictures and captions in the same order"
        )


def _groups(results: Sequence[StoredResult]) -> list[tuple[str, list[StoredResult]]]:
    """Results by recipe, in order of appearance, under names that differ; what has no recipe stands alone."""
    found: dict[str, list[StoredResult]] = {}
    for result in results:
        found.setdefault(result.facts.get("recipe_checksum") or str(result.path), []).append(result)
    recipes = [members[0].facts.get("recipe") for members in found.values()]
    named = []
    for members in found.values():
        recipe = members[0].facts.get("recipe")
        if recipe and recipes.count(recipe) == 1:
            named.append((recipe, members))
        else:
            more = f" and {len(members) - 1} more" if len(members) > 1 else ""
            named.append((name_of(members[0]) + more, members))
    return named


def name_of(result: StoredResult) -> str:
    """The name of a result for people: its run, its file of embeddings, or else its own file."""
    model = result.facts.get("model")
    if isinstance(model, str) and model:
        path = Path(model)
        return str(path.parent if path.name == "model" else path)
    return str(result.facts.get("embeddings") or result.path)


def long_rows(comparison: Comparison) -> Iterator[dict[str, str | float | int | None]]:
    """One row a group and metric, with every number: what the CSV holds."""
    for row in comparison.rows:
        for name in comparison.names:
            direction, metric = name
            difference = row.differences.get(name)
            yield {
                "name": row.name,
                "runs": len(row.seeds),
                "seeds": " ".join(str(seed) for seed in row.seeds if seed is not None),
                "split": comparison.split,
                "protocol": comparison.protocol,
                "direction": direction or "both",
                "metric": metric,
                "mean": row.mean(name),
                "standard_deviation": row.deviation(name),
                "low": row.intervals[name][0],
                "high": row.intervals[name][1],
                "difference": difference.value if difference else None,
                "difference_low": difference.low if difference else None,
                "difference_high": difference.high if difference else None,
                "p": difference.p if difference else None,
            }
