"""Exact search: one matrix product in blocks, whatever the number of vectors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosspair.gallery.engines.engine import Content, Engine
from crosspair.registry import register_engine

BLOCK_SCORES = 1 << 22  # of one matrix product: 16 MB, whatever the number of vectors; smaller blocks were slower


@register_engine("exact")
class ExactEngine(Engine):
    """Every vector is compared; items of equal score come in the order of their rows."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = _tensor(vectors)

    @classmethod
    def open(cls, content: Content) -> "ExactEngine":
        return cls(content.embeddings)

    @classmethod
    def describe(cls, facts: dict[str, Any]) -> str:
        reason = f" ({facts['reason']})" if "reason" in facts else ""
        return f"exact, every picture is compared{reason}"

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """queries float32 [q, d] -> scores float32 [q, min(top, n)] and rows int64, best first."""
        wanted = min(top, len(self._vectors))
        asked = _tensor(queries)
        size = max(wanted + 1, BLOCK_SCORES // max(1, len(queries)))
        best = _Best(len(queries), wanted)
        for start in range(0, len(self._vectors), size):
            best.add(asked @ self._vectors[start : start + size].T, start)
        return best.scores.numpy(), best.rows.numpy()


class _Best:
    """The best of the blocks seen so far, best first, equal scores by row."""

    def __init__(self, queries: int, wanted: int) -> None:
        self.wanted = wanted
        self.scores = torch.empty(queries, 0)
        self.rows = torch.empty(queries, 0, dtype=torch.int64)

    def add(self, scores: Tensor, first_row: int) -> None:
        """scores [q, block], of the rows from `first_row` on, which follow all those before."""
        values, columns = best_columns(scores, self.wanted)
        both = torch.cat([self.scores, values], dim=1)
        rows = torch.cat([self.rows, columns + first_row], dim=1)
        # Stable, and earlier rows stand before later ones: equal scores stay in the order of their rows.
        order = both.argsort(dim=1, descending=True, stable=True)[:, : self.wanted]
        self.scores, self.rows = both.gather(1, order), rows.gather(1, order)


def best_columns(scores: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The `wanted` largest of each row of [q, n] and their columns; of equal values the first columns, in order."""
    values, columns = scores.topk(min(wanted + 1, scores.shape[1]), dim=1)
    if values.shape[1] > wanted:
        # topk takes any of the values that equal the last one: where there is one more of them, look at them all.
        tied: list[int] = (values[:, wanted] == values[:, wanted - 1]).nonzero().flatten().tolist() if wanted else []
        values, columns = values[:, :wanted], columns[:, :wanted]
        for query in tied:
            least = values[query, -1]
            equal = (scores[query] == least).nonzero().flatten()
            columns[query, values[query] == least] = equal[: int((values[query] == least).sum())]
    by_column = columns.argsort(dim=1)
    values, columns = values.gather(1, by_column), columns.gather(1, by_column)
    order = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order), columns.gather(1, order)


def _tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor, without a copy where its memory is contiguous; memory that is mapped is read only."""
    contiguous = np.ascontiguousarray(array, dtype=np.float32)
    if contiguous.flags.writeable:
        return torch.from_numpy(contiguous)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could not be written to: nothing here does
        return torch.from_numpy(contiguous)
