"""Search of a gallery by a query as a user types it: a sentence, or the path of an image."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosspair.data.readers.folder import SUFFIXES
from crosspair.data.tokens import Vocabulary, tokenize
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.items import Item


@dataclass(frozen=True)
class Hit:
    """An image of a gallery that was found, the nearest first."""

    item: Item
    score: float  # cosine, -1..1


def search(gallery: Gallery | str | Path, query: str, top: int = 10) -> list[Hit]:
    """The `top` images of a gallery nearest to a query, a sentence or the path of an image.

    gallery: opened, or its directory, which `crosspair index` wrote. Raises UserError for a gallery that can't be read,
    a query that the model knows no word of, and an image that can't be read; ValueError for a top below 1.
    """
    opened = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
    found = opened.search(encode_query(opened.model(), query), top)
    return [Hit(opened.item(row), float(score)) for row, score in zip(found.rows[0], found.scores[0], strict=True)]


def encode_query(model: DualEncoder, query: str) -> np.ndarray:
    """The vector of a query: float32 [1, d], unit length. What names an existing file is an image.

    Raises UserError for an image that can't be read and a sentence the model knows no word of.
    """
    if _is_file(query):
        return model.encode_image([Path(query)]).numpy()
    if Path(query).suffix.lower() in SUFFIXES and " " not in query.strip():
        raise UserError(f"there is no picture {query}; expected a file's name, or a sentence")
    _check_words(model, query)
    return model.encode_text([query]).numpy()


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # a sentence can be longer than a name
        return False


def _check_words(model: DualEncoder, sentence: str) -> None:
    words = tokenize(sentence, model.config.text.tokenizer)
    if not words:
        raise UserError(f"found {sentence!r} as a query; expected a sentence with words in it, or a picture's file")
    if not isinstance(model.vocabulary, Vocabulary):
        return
    known = set(model.vocabulary.words)
    unknown = [word for word in words if word not in known]
    if len(unknown) == len(words):
        raise UserError(
            f"the model knows none of the words ({', '.join(unknown[:5])}); use words of the captions it learned from"
        )
    if unknown:
        print(f"words the model does not know: {', '.join(unknown)}", file=sys.stderr)
