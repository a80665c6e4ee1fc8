"""Every query of an evaluation with its rank and what was found instead, as a table for pandas and the like.

One row a query and direction; the columns are those of COLUMNS. Ranks and average precisions are the very ones that the
printed metrics are means of; the items are found in a second look at the same scores.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.metrics import DirectionResult
from crosspair.evaluation.protocols import Evaluation, Task
from crosspair.evaluation.ranking import Metric
from crosspair.progress import progress_bar
from crosspair.storage.files import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

_ABSENT = -1
COLUMNS = {
    "direction": "string",
    "query": "string",
    "query_row": "int64",
    "text": "string",
    "label": "int64",
    "positives": "int64",
    "rank": "int64",
    "rank_with_ties_for": "int64",
    "item": "string",
    "item_row": "int64",
    "score": "float64",
    "best_wrong": "string",
    "best_wrong_row": "int64",
    "best_wrong_score": "float64",
    "average_precision": "float64",
    "fold": "int64",
}
Columns = dict[str, Any]


def query_table(
    evaluation: Evaluation, tasks: Sequence[Task], captions: Sequence[str] | None = None, *, progress: bool = False
) -> "pa.Table":
    """The queries of all folds and directions, COLUMNS [queries].

    tasks: those that were evaluated, as `arrange` gives them. captions: of the split's texts, by row, if known.
    progress: show a bar.
    """
    import pyarrow as pa

    schema = pa.schema(list(COLUMNS.items()))
    results = evaluation.folds or (evaluation.result,)
    counts = [len(found.ranks.queries) for result in results for found in result.directions.values()]
    parts = []
    with progress_bar(total=sum(counts), unit=" queries", leave=False, disable=not progress) as bar:
        for fold, (task, result) in enumerate(zip(tasks, results, strict=True), 1):
            for direction, found in result.directions.items():
                columns = _columns(task, direction, found, result.metric, captions, fold, bar)
                arrays = {name: pa.array(columns[name], kind, from_pandas=True) for name, kind in COLUMNS.items()}
                parts.append(pa.table(arrays, schema))
    return pa.concat_tables(parts)


def write_queries(path: Path, table: "pa.Table") -> None:
    """Write a table of queries as a whole Parquet file, or leave the one that was there."""
    import pyarrow.parquet as parquet

    with whole_file(path) as file:
        parquet.write_table(table, file)


def _columns(
    task: Task,
    direction: str,
    found: DirectionResult,
    metric: Metric,
    captions: Sequence[str] | None,
    fold: int,
    bar: Any,
) -> Columns:
    data, ranks = task.embeddings, found.ranks
    images = (data.image_names, data.image_labels, task.image_rows)
    texts = (data.text_names, data.text_labels, task.text_rows)
    of_texts = direction == "text_to_image"
    (names, labels, rows), (items, _, item_rows) = (texts, images) if of_texts else (images, texts)
    queries = ranks.queries
    query_rows = queries if rows is None else rows[queries]
    best, best_score, wrong, wrong_score = (each[queries] for each in _best_items(task, metric, bar, of_texts=of_texts))
    there = wrong != _ABSENT
    return {
        "direction": [direction] * len(queries),
        "query": [names[row] for row in queries],
        "query_row": query_rows,
        "text": [captions[row] for row in query_rows] if of_texts and captions is not None else [None] * len(queries),
        "label": labels[queries],
        "positives": ranks.positives,
        "rank": ranks.first,
        "rank_with_ties_for": ranks.optimistic,
        "item": [items[item] for item in best],
        "item_row": best if item_rows is None else item_rows[best],
        "score": best_score,
        "best_wrong": [items[item] if item != _ABSENT else None for item in wrong],
        "best_wrong_row": np.ma.array(wrong if item_rows is None else item_rows[wrong], mask=~there),
        "best_wrong_score": np.ma.array(wrong_score, mask=~there),
        "average_precision": found.values("mAP"),
        "fold": np.full(len(queries), fold),
    }


def _best_items(task: Task, metric: Metric, bar: Any, *, of_texts: bool) -> tuple[NDArray[Any], ...]:
    """For every row of the queries' side the best relevant item and its score, then the best of the others and its.

    The first of equal items; _ABSENT where there is none.
    """
    data = task.embeddings
    labels, gallery_labels = data.image_labels, data.text_labels
    if of_texts:
        labels, gallery_labels = gallery_labels, labels
    order = np.argsort(gallery_labels, kind="stable")
    starts, ends = (np.searchsorted(gallery_labels[order], labels, side) for side in ("left", "right"))
    items = np.full((2, len(labels)), _ABSENT, dtype=np.int64)
    best = np.full((2, len(labels)), np.nan)
    for some, block in data.score_blocks(metric, of_texts=of_texts):
        for row, scores in zip(range(some.start, some.stop), block, strict=True):
            relevant = order[starts[row] : ends[row]]
            others = scores.copy()
            others[relevant] = -np.inf
            wrong = int(others.argmax())
            if others[wrong] == -np.inf:  # as all of them are, or there are none
                others[:] = 1
                others[relevant] = 0
                wrong = int(others.argmax())
            if len(relevant):
                items[0, row] = relevant[scores[relevant].argmax()]
                best[0, row] = scores[items[0, row]]
            if len(relevant) < len(scores):
                items[1, row], best[1, row] = wrong, scores[wrong]
        bar.update(int((ends[some] > starts[some]).sum()))
    return items[0], best[0], items[1], best[1]
