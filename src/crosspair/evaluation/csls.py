"""Retrieval with less hubness: cross-domain similarity local scaling (CSLS).

Conneau et al., "Word Translation without Parallel Data" (ICLR 2018), section 2.3: a score is lowered by how near the
item is to its nearest queries. That looks at all queries at once, which a search engine does not have, so the numbers
stand apart from those of plain retrieval.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.inputs import EvaluationInputError
from crosspair.evaluation.metrics import MetricDefinition, RetrievalResult
from crosspair.evaluation.protocols import Protocol, Rankable, arrange, evaluation_of
from crosspair.evaluation.ranking import DIRECTIONS, Direction, PositiveRanks, count_ranks, prepare_counting

NEIGHBOURS = 10  # as published
_BLOCK = 256  # items whose cosines with all queries are held at once


def evaluate_csls(
    protocol: Protocol,
    embeddings: Rankable,
    metric_definition: MetricDefinition = "exact",
    *,
    device: str = "cpu",
    directions: Sequence[Direction] = DIRECTIONS,
    distractors: bool = False,
) -> RetrievalResult:
    """The metrics of all queries of a protocol, ranked by CSLS among the queries of their fold.

    device, directions, distractors: as `evaluate_retrieval` takes them. Raises UserError for a protocol whose
    judgements are lists, and for a matrix of similarities.
    """
    protocol.check_tasks("--csls")
    tasks = arrange(protocol, embeddings)
    ranks = [_ranks(task.embeddings, device, directions, distractors) for task in tasks]
    return evaluation_of(protocol, tasks, ranks, metric_definition=metric_definition).result


def _ranks(
    data: Rankable, device: str, directions: Sequence[Direction], distractors: bool
) -> dict[Direction, PositiveRanks]:
    """Ranks of each direction by vectors of its own, as the other side is then the gallery."""
    if not isinstance(data, Embeddings):
        raise EvaluationInputError("CSLS is of embeddings, and a matrix of similarities has none; leave --csls out")
    sides = (data.images, data.image_labels), (data.texts, data.text_labels)
    found: dict[Direction, PositiveRanks] = {}
    for direction in directions:
        of_texts = direction == "text_to_image"
        (queries, labels), (gallery, gallery_labels) = sides[::-1] if of_texts else sides
        rows = np.flatnonzero(np.isin(labels, gallery_labels)) if distractors else np.arange(len(labels))
        asked, items = csls_vectors(queries[rows], gallery)
        both = (asked, labels[rows]), (items, gallery_labels)
        (images, image_labels), (texts, text_labels) = both[::-1] if of_texts else both
        counting = prepare_counting(
            images,
            texts,
            image_labels,
            text_labels,
            "euclidean",
            device=device,
            directions=(direction,),
            distractors=distractors,
        )
        ranks = count_ranks(counting)[direction]
        found[direction] = replace(ranks, queries=rows[ranks.queries])
    return found


def csls_vectors(
    queries: NDArray[np.floating], gallery: NDArray[np.floating], neighbours: int = NEIGHBOURS
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Queries [n, d] and gallery [m, d] as vectors [n, d + 1] and [m, d + 1] whose distances rank by CSLS.

    The nearer of two items to a query is the one with the higher 2 cos(query, item) - r(item), where r is the mean
    cosine of an item and its nearest `neighbours` queries (all of fewer). CSLS also takes off the query's own mean,
    which is the same for all its items. Any lengths; a zero row has cosine 0 with everything.
    """
    dtype = np.result_type(queries, gallery, np.float32)
    asked, items = _unit(queries), _unit(gallery)
    nearest = min(neighbours, len(asked))
    means = np.empty(len(items))
    for start in range(0, len(items), _BLOCK):
        cosines = items[start : start + _BLOCK] @ asked.T
        means[start : start + _BLOCK] = np.partition(cosines, -nearest, axis=1)[:, -nearest:].mean(1)
    # |q - g|^2 = |q|^2 + |g|^2 - 2 q.g: one more coordinate, 0 for queries, brings |g|^2 to 1 + r less a constant.
    short = np.maximum(0.0, 1 - np.square(items).sum(1) + means - means.min())
    more = (np.zeros((len(asked), 1)), np.sqrt(short)[:, None])
    first, second = (
        np.concatenate([side, one], 1).astype(dtype) for side, one in zip((asked, items), more, strict=True)
    )
    return first, second


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = np.asarray(rows, dtype=np.float64)
    largest = np.abs(wide).max(1, keepdims=True)
    wide = wide / np.where(largest > 0, largest, 1.0)  # whose squares stay in range
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: NDArray[np.float64] = wide / np.where(lengths > 0, lengths, 1.0)
    return unit
