"""Rankings and relevance judgements in TREC's formats, for trec_eval, ir_measures, ranx and whatever else reads them.

    PREFIX.image_to_text.run    query Q0 item place score crosspair
    PREFIX.image_to_text.qrels  query 0 item 1
and the same for text_to_image.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.protocols import Task
from crosspair.evaluation.ranking import DIRECTIONS, Metric
from crosspair.storage.files import whole_file

DEPTH = 1000  # items of a ranking, as is usual at TREC


def write_trec(
    prefix: Path,
    tasks: Sequence[Task],
    metric: Metric = "cosine",
    depth: int = DEPTH,
    directions: Sequence[str] = DIRECTIONS,
) -> list[Path]:
    """Write the first `depth` items of every query, and all that are relevant; the paths of two files a direction.

    A row that nothing matches is an item, and no query.

    The tools break ties in their own ways. So negatives of a tie go first, and its scores are lowered by the last bit
    of a float32, one after the other, until no two are equal.
    """
    written = []
    for direction in directions:
        run, qrels = trec_paths(prefix, direction)
        with whole_file(run) as rankings, whole_file(qrels) as judgements:
            for task in tasks:
                _write_task(task, metric, depth, rankings, judgements, of_texts=direction == "text_to_image")
        written += [run, qrels]
    return written


def trec_paths(prefix: Path, direction: str) -> tuple[Path, Path]:
    """The files of a direction's rankings and judgements."""
    run, qrels = (prefix.with_name(f"{prefix.name}.{direction}.{suffix}") for suffix in ("run", "qrels"))
    return run, qrels


def _write_task(
    task: Task, metric: Metric, depth: int, rankings: BinaryIO, judgements: BinaryIO, *, of_texts: bool
) -> None:
    data = task.embeddings
    sides = [(data.image_labels, _printable(data.image_names)), (data.text_labels, _printable(data.text_names))]
    (labels, queries), (gallery_labels, items) = sides[::-1] if of_texts else sides
    for some, scores in data.score_blocks(metric, of_texts=of_texts):
        for row, row_scores in zip(range(some.start, some.stop), scores, strict=True):
            relevant = gallery_labels == labels[row]
            if not relevant.any():  # it is in the gallery alone
                continue
            rankings.write(_ranking(queries[row], items, row_scores, relevant, depth).encode())
            judgements.write(
                "".join(f"{queries[row]} 0 {items[item]} 1\n" for item in np.flatnonzero(relevant)).encode()
            )


def _ranking(
    query: str, items: Sequence[str], scores: NDArray[np.floating], relevant: NDArray[np.bool_], depth: int
) -> str:
    """A query's lines of a run."""
    reached = np.arange(len(scores))
    if depth < len(scores):
        reached = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
    order = reached[np.lexsort((relevant[reached], -scores[reached]))][:depth]
    values = _strictly_descending(scores[order])
    return "".join(
        f"{query} Q0 {items[item]} {place} {value:.9g} crosspair\n"
        for place, (item, value) in enumerate(zip(order.tolist(), values.tolist(), strict=True), 1)
    )


def _strictly_descending(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Descending scores as float32, each at least one bit below the one before."""
    bits = scores.astype(np.float32).view(np.int32).astype(np.int64)
    # Floats ascend as whole numbers do once the negative ones are mirrored.
    ordered = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    steps = np.arange(len(ordered))
    lowered = np.minimum.accumulate(ordered + steps) - steps
    back = np.where(lowered < 0, -lowered | 0x80000000, lowered)
    return back.astype(np.uint32).view(np.float32)


def _printable(names: Sequence[str]) -> list[str]:
    """Names without white space, which separates the columns; those that differ stay different."""
    return [re.sub(r"[\s%]", lambda found: quote(found[0]), name) for name in names]
