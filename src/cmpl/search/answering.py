"""Sentences, pictures and rows of a gallery as one batch: encoded by their kind, searched together."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cmpl.search.gallery import Gallery

PICTURE_COST = 8  # encoding a picture takes about as long as this many sentences


@dataclass(frozen=True, eq=False)
class Question:
    """What is nearest to exactly one of them: a sentence, a picture uint8 [3, h, w], or a row of the gallery."""

    top: int
    text: str | None = None
    picture: Tensor | None = None
    row: int | None = None

    @property
    def cost(self) -> int:
        return 1 if self.picture is None else PICTURE_COST


@dataclass(frozen=True)
class Hit:
    row: int
    score: float | None  # cosine, -1..1; none where nothing was asked for


class Answerer:
    """Answers batches of questions about one gallery. Call it from one thread at a time."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.model = gallery.model()

    def __call__(self, questions: list[Question]) -> list[list[Hit]]:
        """For each question its hits, best first; a row is not among its own."""
        queries = np.empty((len(questions), self.gallery.dimension), np.float32)
        texts = [(place, each.text) for place, each in enumerate(questions) if each.text is not None]
        pictures = [(place, each.picture) for place, each in enumerate(questions) if each.picture is not None]
        if texts:
            queries[[place for place, _ in texts]] = self.model.encode_text([text for _, text in texts]).numpy()
        if pictures:
            encoded = self.model.encode_image([picture for _, picture in pictures])
            queries[[place for place, _ in pictures]] = encoded.numpy()
        for place, each in enumerate(questions):
            if each.row is not None:
                queries[place] = self.gallery.embeddings[each.row]
        found = self.gallery.search(queries, max(each.top + (each.row is not None) for each in questions))
        hits = [
            [Hit(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]
        return [
            [hit for hit in of_question if hit.row != each.row][: each.top]
            for each, of_question in zip(questions, hits, strict=True)
        ]
