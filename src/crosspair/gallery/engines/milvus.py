"""Galleries whose vectors are searched by Milvus: a cluster at an address, or a local file that needs no server.

An image's key is the SHA-256 of its bytes, not its row: rows move when images are added, keys never do. Adding an
image again changes nothing, so that an indexing run may be killed anywhere and repeated, and every image is there
once; searches go on meanwhile, as images are added before the gallery's new state and removed after it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crosspair.errors import UserError
from crosspair.gallery.engines.engine import Content, Engine, Renewal, Request
from crosspair.gallery.engines.milvus_client import MOST_HITS, Address, Collection, collection_name, index_kind
from crosspair.registry import register_engine


class MilvusRenewal(Renewal):
    """Brings a collection to a gallery's new state: what is new before the gallery changes, what is gone after it."""

    def __init__(self, collection: Collection, address: Address, previous: Iterable[str]) -> None:
        """previous: SHA-256 of the images of the gallery as it is."""
        self._collection = collection
        self._address = address
        self._previous = set(previous)
        self._present: set[str] = set()

    def add(self, content: Content) -> dict[str, Any]:
        """Add all of the new state to the collection."""
        keys = content.keys()
        first = {sha256: row for row, sha256 in reversed(list(enumerate(keys)))}
        self._collection.create(len(first))
        # Only where a run was interrupted, or somebody changed the collection, need it be asked for all its keys.
        as_left = self._collection.count() == len(self._previous)
        self._present = self._previous if as_left else set(self._collection.keys())
        missing = sorted(row for sha256, row in first.items() if sha256 not in self._present)
        self._collection.add((keys[row], content.embeddings[row]) for row in missing)
        kind, parameters = index_kind(self._collection.where, len(first))
        return {"kind": "milvus", "type": kind, "parameters": parameters, "address": self._address.facts()}

    def finish(self, keys: set[str]) -> None:
        """Raises UserError when the collection does not hold these images, each once, in the end."""
        self._collection.remove(self._present - keys)
        found = self._collection.count()
        if found != len(keys):
            raise UserError(
                f"the collection {self._collection.name} at {self._collection.where} holds {found:,} pictures, "
                f"expected {len(keys):,}; run `crosspair index` again"
            )

    def close(self) -> None:
        self._collection.close()


@register_engine("milvus")
class MilvusEngine(Engine):
    """A collection in Milvus, a cluster or a local file, is searched (--address)."""

    keeps_vectors_elsewhere = True

    def __init__(self, collection: Collection, keys: Sequence[str]) -> None:
        """keys: the SHA-256 of each row's image."""
        self._collection = collection
        self._count = len(keys)
        self._rows: dict[str, list[int]] = {}
        for row, sha256 in enumerate(keys):
            self._rows.setdefault(sha256, []).append(row)

    @classmethod
    def open(cls, content: Content) -> "MilvusEngine":
        """Raises UserError when the gallery's collection can't be reached or is another's."""
        address = Address.from_facts(content.facts)
        where = address.find(content.directory)
        if "://" not in where and not Path(where).exists():
            raise UserError(f"the Milvus file {where} is gone; put it back or run `crosspair index` again")
        collection = Collection(where, address.collection, content.embeddings.shape[1])
        if not collection.exists():
            raise UserError(f"there is no collection {address.collection} at {where}; run `crosspair index` again")
        collection.load()
        return cls(collection, content.keys())

    @classmethod
    def renew(cls, request: Request) -> Renewal:
        """Raises UserError when the address is missing or another one, and when Milvus can't be reached."""
        gallery, given, previous = request.directory, request.address, request.previous
        if previous is not None and previous.facts["kind"] == "milvus":
            found = Address.from_facts(previous.facts)
            where, keys = found.find(gallery), previous.keys()
            if given is not None and Address.parse(given, gallery, found.collection).find(gallery) != where:
                raise UserError(
                    f"the vectors of {gallery} are at {where}; name a new --output for {given}, or leave --address out"
                )
        elif given is None:
            raise UserError(
                "the engine milvus needs --address: a file that ends in .db, or http://HOST:PORT of a cluster"
            )
        else:
            found, keys = Address.parse(given, gallery, collection_name(request.work)), ()
        collection = Collection(found.find(gallery), found.collection, request.dimension)
        collection.exists()  # complains of another dimension now, not after hours of encoding
        return MilvusRenewal(collection, found, keys)

    @classmethod
    def describe(cls, facts: dict[str, Any]) -> str:
        return f"{facts['type']} in Milvus"

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """queries float32 [q, d] -> scores float32 [q, min(top, n)] and rows int64, best first, equal ones by row.

        Raises UserError for a top above 16,384, and when the collection does not hold the gallery's images.
        """
        wanted = min(top, self._count)
        if wanted > MOST_HITS:
            raise UserError(f"found --top {top}; Milvus gives at most {MOST_HITS:,}")
        limit = wanted
        while True:
            hits = self._collection.search(queries, limit)
            best = [self._known(of_query)[:wanted] for of_query in hits]
            if all(len(of_query) == wanted for of_query in best):
                break
            # Images that an indexing run has just added, or not yet removed, took places: ask for more.
            if limit == MOST_HITS or all(len(of_query) < limit for of_query in hits):
                raise UserError(
                    f"the collection {self._collection.name} at {self._collection.where} lacks pictures of the "
                    "gallery; run `crosspair index` again"
                )
            limit = min(2 * limit, MOST_HITS)
        scores = np.array([[-negated for negated, _ in of_query] for of_query in best], np.float32)
        rows = np.array([[row for _, row in of_query] for of_query in best], np.int64)
        return scores.reshape(len(queries), wanted), rows.reshape(len(queries), wanted)

    def _known(self, hits: list[tuple[str, float]]) -> list[tuple[float, int]]:
        return sorted((-score, row) for sha256, score in hits for row in self._rows.get(sha256, ()))
