"""The interface of search engines, and how the engine of a gallery is found by its name.

A gallery keeps its vectors in `embeddings.npy` whatever engine searches them. An engine may keep one file of its own in
the gallery, and what it needs to know in gallery.json's `index`; one that keeps vectors elsewhere brings a `Renewal`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from crosspair.errors import UserError
from crosspair.registry import ENGINES

AUTO = "auto"  # the engine of a gallery for which none was named


@dataclass(frozen=True)
class SearchResult:
    """The best items of each of q queries, best first. Both arrays are narrower than asked where items are fewer."""

    scores: np.ndarray  # float32 [q, top], cosines
    rows: np.ndarray  # int64 [q, top], of the gallery


@dataclass(frozen=True)
class Content:
    """The part of a gallery that an engine is given.

    directory: the gallery's. embeddings float32 [n, d]: of unit length, perhaps a mapped file. file: where the engine
    may keep a file. facts: what it said of its index when that was built, {} before. keys: gives the SHA-256 of each
    row's image, equal ones for equal images. captions: gives vectors float32 [m, d] of some of the images' captions, to
    measure recall with, or None.
    """

    directory: Path
    embeddings: np.ndarray
    file: Path
    facts: dict[str, Any] = field(default_factory=dict)
    keys: Callable[[], Sequence[str]] = tuple
    captions: Callable[[], np.ndarray | None] = lambda: None


@dataclass(frozen=True)
class Request:
    """The facts of an indexing run that are known before the images are encoded.

    directory: the gallery's. work: a directory that stays until the gallery is complete. dimension: of the vectors.
    address: what the user gave with --address. previous: the gallery as it is, None for a new one.
    """

    directory: Path
    work: Path
    dimension: int
    address: str | None = None
    previous: Content | None = None


class Renewal:
    """Brings an index to a gallery's new state: `add` before the gallery changes, `finish` after it, then `close`."""

    def __init__(self, build: Callable[[Content], dict[str, Any]]) -> None:
        self._build = build

    def add(self, content: Content) -> dict[str, Any]:
        """Index all of the new state; what gallery.json is to say of it."""
        return self._build(content)

    def finish(self, keys: set[str]) -> None:
        """Remove everything but these images, which are those of the new state."""

    def close(self) -> None:
        """Free what is held."""


class Engine(ABC):
    """Finds the nearest vectors of a gallery by cosine. Many threads may search at once.

    The least that an engine of a user's own has is `search`, and an `__init__` that takes the Content.
    """

    keeps_vectors_elsewhere: ClassVar[bool] = False  # so that a gallery can't simply take another engine

    @abstractmethod
    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """queries float32 [q, d] of unit length -> scores float32 [q, min(top, n)] and rows int64, best first."""

    @classmethod
    def open(cls, content: Content) -> "Engine":
        """The engine of a gallery whose index was built. Raises UserError when that is damaged or can't be reached."""
        return cls(content)  # type: ignore[call-arg]

    @classmethod
    def build(cls, content: Content) -> dict[str, Any]:
        """Index the vectors, with a file at `content.file` if any; what gallery.json is to say of the index.

        Under "kind" it may name another engine, which then searches.
        """
        return {}

    @classmethod
    def renew(cls, request: Request) -> Renewal:
        """A renewal of the index to a new state. Raises UserError, before anything is encoded, when it can't."""
        if request.address is not None:
            raise UserError(f"found --address {request.address}; it is for --engine milvus, leave it out for others")
        return Renewal(cls.build)

    @classmethod
    def describe(cls, facts: dict[str, Any]) -> str:
        """An index in words."""
        return str(facts["kind"])


def find_engine(name: str) -> type[Engine]:
    """The registered engine. Raises UserError with the names there are."""
    thing = ENGINES.get(name)
    if not (isinstance(thing, type) and issubclass(thing, Engine)):
        raise UserError(
            f"the search engine '{name}' is registered as {type(thing).__name__}; expected a subclass of "
            "crosspair.gallery.engines.engine.Engine"
        )
    return thing


def open_renewal(name: str | None, known: str | None, request: Request) -> tuple[str, Renewal]:
    """The engine that is to search a gallery, and what brings it to the new state.

    name: as the user gave it. known: that of the gallery as it is, None for a new one. Raises UserError when they or
    the address don't fit together, and when the engine can't be reached.
    """
    chosen = name or known or ("milvus" if request.address else AUTO)
    engine = find_engine(chosen)
    # Of an engine whose plugin is missing nobody knows; its gallery must not be stuck with it.
    if known is not None and chosen != known and known in ENGINES and find_engine(known).keeps_vectors_elsewhere:
        raise UserError(f"{request.directory} is searched by {known}; name a new --output for the engine {chosen}")
    return chosen, engine.renew(request)
