"""Retrieval with less hubness: cross-domain similarity local scaling (CSLS).

Conneau et al., "Word Translation without Parallel Data" (ICLR 2018), section 2.3: a score is lowered by how near the
item is to its nearest queries. That looks at all queries at once, which a search engine does not have, so the numbers
stand apart from those of plain retrieval.
"""

import numpy as np
from numpy.typing import NDArray

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.metrics import MetricDefinition, RetrievalResult
from crosspair.evaluation.protocols import Protocol, arrange, evaluation_of
from crosspair.evaluation.ranking import Direction, PositiveRanks, rank_positives

NEIGHBOURS = 10  # as published
_BLOCK = 256  # items whose cosines with all queries are held at once


def evaluate_csls(
    protocol: Protocol, embeddings: Embeddings, metric_definition: MetricDefinition = "exact", *, device: str = "cpu"
) -> RetrievalResult:
    """The metrics of all queries of a protocol, ranked by CSLS among the queries of their fold.

    device: as `rank_positives` takes it. Raises UserError for a protocol whose judgements are lists.
    """
    protocol.check_tasks("--csls")
    tasks = arrange(protocol, embeddings)
    ranks = [_ranks(task.embeddings, device) for task in tasks]
    return evaluation_of(protocol, tasks, ranks, metric_definition=metric_definition).result


def _ranks(data: Embeddings, device: str) -> dict[Direction, PositiveRanks]:
    """Ranks of each direction by vectors of its own, as the other side is then the gallery."""
    labels = (data.image_labels, data.text_labels)
    images, texts = csls_vectors(data.images, data.texts)
    image_to_text, _ = rank_positives(images, texts, *labels, "euclidean", device=device)
    texts, images = csls_vectors(data.texts, data.images)
    _, text_to_image = rank_positives(images, texts, *labels, "euclidean", device=device)
    return {"image_to_text": image_to_text, "text_to_image": text_to_image}


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
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: NDArray[np.float64] = wide / np.where(lengths > 0, lengths, 1.0)
    return unit
