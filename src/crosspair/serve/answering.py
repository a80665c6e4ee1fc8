"""Sentences, pictures and rows of a gallery as one batch: encoded by their kind, searched together."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from crosspair.gallery.gallery import Gallery

IMAGE_COST = 8  # encoding a picture takes about as long as this many sentences


@dataclass(frozen=True, eq=False)
class SearchQuery:
    """What is nearest to exactly one of them: a sentence, a picture uint8 [3, h, w], or a row of the gallery."""

    top: int
    text: str | None = None
    image: Tensor | None = None
    row: int | None = None

    @property
    def cost(self) -> int:
        return 1 if self.image is None else IMAGE_COST


@dataclass(frozen=True)
class Hit:
    row: int
    score: float | None  # cosine, -1..1; none where nothing was asked for


class Answerer:
    """Answers batches of questions about one gallery. Call it from one thread at a time."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.model = gallery.model()

    def __call__(self, queries: list[SearchQuery]) -> list[list[Hit]]:
        """For each query its hits, best first; a row is not among its own."""
        vectors = np.empty((len(queries), self.gallery.dimension), np.float32)
        texts = [(place, each.text) for place, each in enumerate(queries) if each.text is not None]
        images = [(place, each.image) for place, each in enumerate(queries) if each.image is not None]
        if texts:
            vectors[[place for place, _ in texts]] = self.model.encode_text([text for _, text in texts]).numpy()
        if images:
            encoded = self.model.encode_image([image for _, image in images])
            vectors[[place for place, _ in images]] = encoded.numpy()
        for place, each in enumerate(queries):
            if each.row is not None:
                vectors[place] = self.gallery.embeddings[each.row]
        found = self.gallery.search(vectors, max(each.top + (each.row is not None) for each in queries))
        hits = [
            [Hit(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]
        return [
            [hit for hit in of_query if hit.row != each.row][: each.top]
            for each, of_query in zip(queries, hits, strict=True)
        ]
