"""Galleries whose vectors are searched by Milvus: a cluster at an address, or a local file that needs no server.

A picture's key is the SHA-256 of its bytes, not its row: rows move when pictures are added, keys never do. Adding a
picture again changes nothing, so that an indexing run may be killed anywhere and repeated, and every picture is there
once; searches go on meanwhile, as pictures are added before the gallery's new state and removed after it.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspair.errors import UserError
from crosspair.gallery.engines.milvus_client import MOST_HITS, Address, Collection, collection_name, index_kind
from crosspair.gallery.layout import Manifest

if TYPE_CHECKING:
    from crosspair.gallery.gallery import Gallery


class Renewal:
    """Brings a collection to a gallery's new state: what is new before the gallery changes, what is gone after it."""

    def __init__(self, collection: Collection, address: Address, previous: set[str]) -> None:
        """previous: SHA-256 of the pictures of the gallery as it is."""
        self._collection = collection
        self._address = address
        self._previous = previous
        self._present: set[str] = set()

    def add(self, manifest: Manifest, sha256s: list[str], vectors: np.ndarray) -> Manifest:
        """Have all of the new state in the collection: vectors [n, d]. Returns the manifest with the engine in it."""
        first = {sha256: row for row, sha256 in reversed(list(enumerate(sha256s)))}
        self._collection.create(len(first))
        # Only where a run was interrupted, or somebody changed the collection, need it be asked for all its keys.
        as_left = self._collection.count() == len(self._previous)
        self._present = self._previous if as_left else set(self._collection.keys())
        missing = sorted(row for sha256, row in first.items() if sha256 not in self._present)
        self._collection.add((sha256s[row], vectors[row]) for row in missing)
        kind, parameters = index_kind(self._collection.where, len(first))
        index = {"kind": "milvus", "type": kind, "parameters": parameters}
        return replace(manifest, index=index, engine="milvus", engine_settings=self._address.settings())

    def remove_all_but(self, sha256s: set[str]) -> None:
        """Raises UserError when the collection does not hold these pictures, each once, in the end."""
        self._collection.remove(self._present - sha256s)
        found = self._collection.count()
        if found != len(sha256s):
            raise UserError(
                f"the collection {self._collection.name} at {self._collection.where} holds {found:,} pictures, "
                f"expected {len(sha256s):,}; run `crosspair index` again"
            )

    def close(self) -> None:
        self._collection.close()


def open_renewal(
    engine: str | None, address: str | None, gallery: Path, work: Path, previous: "Gallery | None", dimension: int
) -> Renewal | None:
    """Of the collection that is to hold a gallery; None where another engine does.

    engine, address: as the user gave them, by default those of the gallery as it is. Raises UserError when they don't
    fit together or to that gallery, and when Milvus can't be reached.
    """
    known = previous.manifest.engine if previous is not None else None
    engine = engine or known or ("milvus" if address else "faiss")
    if previous is not None and engine != known:
        raise UserError(f"{gallery} is searched by {known}; name a new --output for the engine {engine}")
    if engine != "milvus":
        if address is not None:
            raise UserError(f"found --address {address} with the engine {engine}; it is for --engine milvus")
        return None
    if previous is not None:
        found = Address.from_settings(previous.manifest.engine_settings)
        if address is not None and Address.parse(address, gallery, found.collection).find(gallery) != found.find(
            gallery
        ):
            raise UserError(
                f"the vectors of {gallery} are at {found.find(gallery)}; name a new --output for {address}, "
                "or leave --address out"
            )
    elif address is None:
        raise UserError("the engine milvus needs --address: a file that ends in .db, or http://HOST:PORT of a cluster")
    else:
        found = Address.parse(address, gallery, collection_name(work))
    collection = Collection(found.find(gallery), found.collection, dimension)
    collection.exists()  # complains of another dimension now, not after hours of encoding
    return Renewal(collection, found, set(previous.items["sha256"]) if previous is not None else set())


class MilvusEngine:
    """Searches a gallery's collection and answers in the gallery's rows; many threads may ask at once."""

    def __init__(self, collection: Collection, sha256s: list[str]) -> None:
        self._collection = collection
        self._count = len(sha256s)
        self._rows: dict[str, list[int]] = {}
        for row, sha256 in enumerate(sha256s):
            self._rows.setdefault(sha256, []).append(row)

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """queries float32 [q, d] -> scores float32 [q, min(top, n)] and rows int64, best first, equal ones by row.

        Raises UserError for a top above 16,384, and when the collection does not hold the gallery's pictures.
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
            # Pictures that an indexing run has just added, or not yet removed, took places: ask for more.
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


def open_engine(gallery: Path, settings: dict[str, Any], dimension: int, sha256s: list[str]) -> MilvusEngine:
    """The engine of a gallery. Raises UserError when its collection can't be reached or is another's."""
    address = Address.from_settings(settings)
    where = address.find(gallery)
    if "://" not in where and not Path(where).exists():
        raise UserError(f"the Milvus file {where} is gone; put it back or run `crosspair index` again")
    collection = Collection(where, address.collection, dimension)
    if not collection.exists():
        raise UserError(f"there is no collection {address.collection} at {where}; run `crosspair index` again")
    collection.load()
    return MilvusEngine(collection, sha256s)
