"""A second model on the same queries: both in numbers, and the queries that one of them finds and the other misses."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.clusters import RSUM
from crosspair.evaluation.comparison import Comparison
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import Evaluation
from crosspair.evaluation.ranking import Direction
from crosspair.evaluation.uncertainty import LEVEL
from crosspair.report.examples import Model, distinct
from crosspair.report.searches import of_all, ranks_by_row, searches
from crosspair.report.text import foreign, shortened

FOUND = 10  # a query is found when a relevant item is among as many
_DIRECTIONS = {"image_to_text": "Image to text", "text_to_image": "Text to image", "": "Both"}


@dataclass(frozen=True)
class Rival:
    """The model that a report's own is compared with.

    name: shown beside its rankings. evaluation: of the same queries, by the same protocol. embeddings: None where only
    its ranks are stored. comparison: of both, the report's own model first.
    """

    name: str
    evaluation: Evaluation
    embeddings: Embeddings | None
    comparison: Comparison

    def model(self, rows: dict[Direction, int]) -> Model:
        """Its ranks and searches, as far as they are known. rows: how many rows each direction's queries are of."""
        if self.embeddings is not None:
            found = searches(of_all(self.evaluation, self.embeddings), self.embeddings)
            return Model(self.name, {name: each.ranks for name, each in found.items()}, found)
        if not self.evaluation.protocol.ranks_whole_split:  # its ranks are of other galleries, or of other queries
            return Model(self.name, {})
        results = self.evaluation.result.directions
        ranks = {name: results[name].ranks for name in rows if name in results}
        return Model(
            self.name, {name: ranks_by_row(rows[name], each.queries, each.first) for name, each in ranks.items()}
        )


def comparison_table(comparison: Comparison, names: tuple[str, str]) -> str:
    """The protocol's metrics of both, and the second minus the first with its interval and its test."""
    ours, theirs = comparison.rows
    rows: dict[str, list[str]] = {}
    for name, each in theirs.differences.items():
        metric = "sum of recalls" if name == RSUM else name[1].replace("_", " ")
        rows.setdefault(_DIRECTIONS[name[0]], []).append(
            f'<tr><th scope="row">{foreign(metric)}</th><td>{ours.mean(name):.1f}</td><td>{theirs.mean(name):.1f}</td>'
            f'<td>{_signed(each.value)} <span class="interval">[{_signed(each.low)}, {_signed(each.high)}]</span></td>'
            f"<td>{_p(each.p)}</td></tr>"
        )
    note = (
        f"The second minus the first, on the same queries, with {LEVEL} % intervals over {comparison.clusters:,} "
        f"{comparison.unit}. p is how often a difference as large comes about by swapping both results at random."
    )
    heads = [*map(_head, names), "Difference", "p"]
    return _table("Side by side", "Metric", heads, rows, f'<p class="quiet small">{note}</p>')


def agreement_table(models: tuple[Model, Model], ks: tuple[int, ...] = (1, 5, FOUND)) -> str:
    """How many queries both, one or neither of the models finds among the first K. Empty without the rival's ranks."""
    rows: dict[str, list[str]] = {}
    for direction in _shared(models):
        _, ours, theirs = _asked(models, direction)
        for k in ks:
            kinds = (
                (ours <= k) & (theirs <= k),
                (ours <= k) & (theirs > k),
                (ours > k) & (theirs <= k),
                (ours > k) & (theirs > k),
            )
            cells = "".join(f"<td>{np.count_nonzero(kind):,}</td>" for kind in kinds)
            line = f'<tr><th scope="row">first {k}</th>{cells}</tr>'
            rows.setdefault(_DIRECTIONS[direction], []).append(line)
    heads = ["both", *(f"only {_head(model.name)}" for model in models), "neither"]
    return _table("Queries found among the first, by", "Places", heads, rows) if rows else ""


def _table(caption: str, corner: str, heads: list[str], groups: dict[str, list[str]], below: str = "") -> str:
    """A table with rows in groups, each under its name."""
    body = "".join(
        f'<tr class="group"><th scope="rowgroup" colspan="{len(heads) + 1}">{group}</th></tr>{"".join(rows)}'
        for group, rows in groups.items()
    )
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="card"><table class="versus"><caption>{caption}</caption><thead><tr><th scope="col">'
        f'<span class="hidden">{corner}</span></th>{columns}</tr></thead><tbody>{body}</tbody></table>{below}</div>'
    )


def only_found_by(
    finder: Model, misser: Model, direction: Direction, labels: NDArray[np.int64], count: int
) -> tuple[list[int], int]:
    """Rows of queries that one finds and the other does not, the clearest first, one of each label; and how many.

    Both models have ranks of the direction. labels [rows]: of the queries' side.
    """
    rows, found, missed = _asked((finder, misser), direction)
    only = np.flatnonzero((found <= FOUND) & (missed > FOUND))
    order = only[np.lexsort((-missed[only], found[only]))]
    return distinct(rows[order], [labels], count), len(only)


def _shared(models: tuple[Model, Model]) -> list[Direction]:
    return [name for name in models[0].ranks if name in models[1].ranks]


def _asked(
    models: tuple[Model, Model], direction: Direction
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows that are queries of both, and both's ranks of them."""
    one, other = (model.ranks[direction] for model in models)
    rows = np.flatnonzero((one > 0) & (other > 0))
    return rows, one[rows], other[rows]


def _head(name: str) -> str:
    return shortened(name, 14)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\u2212")


def _p(p: float) -> str:
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"
