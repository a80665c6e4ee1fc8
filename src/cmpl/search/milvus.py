"""Galleries whose vectors are searched by Milvus: a cluster at an address, or a local file that needs no server.

A picture's key is the SHA-256 of its bytes, not its row: rows move when pictures are added, keys never do. Adding a
picture again changes nothing, so that an indexing run may be killed anywhere and repeated, and every picture is there
once; searches go on meanwhile, as pictures are added before the gallery's new state and removed after it.
"""

import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from cmpl.errors import UserError
from cmpl.files import write_text
from cmpl.search.layout import Manifest, Place

if TYPE_CHECKING:
    from pymilvus import MilvusClient

    from cmpl.search.gallery import Gallery

TOKEN = "CMPL_MILVUS_TOKEN"  # user:password, or a key; never written down
BATCH_NUMBERS = 1 << 20  # of vectors in one request: 4 MB, far below the 64 MB that a server takes
KEYS = 1000  # read or removed at a time
MOST_HITS = 16_384  # that Milvus gives for one query
SECONDS = 10.0  # to reach a server
EXACT_UP_TO = 100_000  # pictures
IN_MEMORY_UP_TO = 100_000_000  # pictures; 205 GB of 512 float32 numbers
T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Of a collection: a cluster's address, or a local file as seen from the gallery; one of the two is given."""

    collection: str
    uri: str | None = None
    file: Place | None = None

    @classmethod
    def parse(cls, address: str, gallery: Path, collection: str) -> "Address":
        """Raises UserError unless it is a file that ends in .db or an http, https or tcp address without a secret."""
        if "://" not in address:
            if not address.endswith(".db") or not Path(address).absolute().parent.is_dir():
                raise UserError(
                    f"found --address {address}; expected a file that ends in .db in a directory that exists, "
                    "or a cluster's address such as http://milvus:19530"
                )
            return cls(collection, file=Place.of(Path(address), gallery))
        parts = urlsplit(address)
        if parts.username or parts.password or "@" in parts.netloc:
            raise UserError(f"--address holds a secret, which a gallery would keep; put it in {TOKEN} instead")
        if parts.scheme not in ("http", "https", "tcp") or not parts.hostname:
            raise UserError(f"found --address {address}; expected http://HOST:PORT, https://HOST:PORT or a .db file")
        return cls(collection, uri=address)

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "Address":
        """What `settings` gave. Raises UserError when it is something else."""
        try:
            file = settings["file"]
            return cls(str(settings["collection"]), settings["uri"], None if file is None else Place(**file))
        except (KeyError, TypeError) as error:
            raise UserError("gallery.json names no Milvus collection; copy the gallery again or index anew") from error

    def settings(self) -> dict[str, Any]:
        """For gallery.json."""
        return asdict(self)

    def find(self, gallery: Path) -> str:
        """What pymilvus is to connect to."""
        return self.uri if self.uri is not None else str(self.file.find(gallery)) if self.file else ""


def collection_name(work: Path) -> str:
    """A new collection's; what an interrupted first run has begun is gone on with."""
    path = work / "collection"
    if not path.is_file():
        write_text(path, f"cmpl_{uuid.uuid4().hex}")
    return path.read_text(encoding="utf-8")


def connect(where: str) -> "MilvusClient":
    """A client of a cluster or a local file. Raises UserError when pymilvus is missing or nobody answers."""
    try:
        from pymilvus import MilvusClient, MilvusException
    except ImportError as error:
        raise UserError("the engine milvus needs the package pymilvus; run: pip install 'cmpl[milvus]'") from error
    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # they print whole tracebacks of what is one sentence here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return MilvusClient(where, token=os.environ.get(TOKEN, ""), timeout=SECONDS)
    except MilvusException as error:
        reason = " ".join(str(error.message).split())[:200]
        if "://" not in where:
            hint = "see that no other process has it open, such as `cmpl serve`"
            raise UserError(f"can't open the Milvus file {where} ({reason}); {hint}") from error
        hint = f"see that it runs and that {TOKEN} holds its token, if it wants one"
        raise UserError(f"can't reach Milvus at {where} ({reason}); {hint}") from error


def release(where: str) -> None:
    """Let other processes have a local file; nothing to do for a cluster."""
    if "://" not in where:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(where)


def index_kind(where: str, count: int) -> tuple[str, dict[str, int]]:
    """The index for a collection of `count` pictures, and its parameters.

    A local file is compared with whole. So are a cluster's first 100,000; then comes a graph in memory, then on disks.
    """
    if "://" not in where or count <= EXACT_UP_TO:
        return "FLAT", {}
    return ("HNSW", {"M": 16, "efConstruction": 200}) if count <= IN_MEMORY_UP_TO else ("DISKANN", {})


class Collection:
    """The vectors of one gallery in Milvus, under the SHA-256 of their pictures."""

    def __init__(self, where: str, name: str, dimension: int) -> None:
        self.where = where
        self.name = name
        self.dimension = dimension
        self._client = connect(where)

    def exists(self) -> bool:
        """Raises UserError when it holds vectors of another dimension."""
        from pymilvus import MilvusException

        try:
            if not self._client.has_collection(self.name):
                return False
            fields = self._client.describe_collection(self.name)["fields"]
        except MilvusException as error:
            raise self._failed("asked for", error) from error
        found = next((field["params"].get("dim") for field in fields if field["name"] == "vector"), None)
        if found is None or int(found) != self.dimension:
            raise UserError(
                f"the collection {self.name} at {self.where} has vectors of {found} numbers, the gallery of "
                f"{self.dimension}; drop the collection and run `cmpl index` again"
            )
        return True

    def create(self, count: int) -> None:
        """For about `count` pictures; where it exists, its index is made the one for so many."""
        from pymilvus import DataType, MilvusClient, MilvusException

        kind, parameters = index_kind(self.where, count)
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type=kind, metric_type="COSINE", params=parameters)
        try:
            if not self.exists():
                schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("sha256", DataType.VARCHAR, is_primary=True, max_length=64)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dimension)
                self._client.create_collection(self.name, schema=schema, index_params=index)
            elif not self._client.list_indexes(self.name, "vector"):  # interrupted in what follows
                self._client.create_index(self.name, index)
            elif self._index_type() != kind:
                self._client.release_collection(self.name)
                self._client.drop_index(self.name, "vector")
                self._client.create_index(self.name, index)
        except MilvusException as error:
            raise self._failed("made", error) from error
        self.load()

    def load(self) -> None:
        """Have the server ready to search it."""
        from pymilvus import MilvusException

        try:
            self._client.load_collection(self.name)
        except MilvusException as error:
            raise self._failed("loaded", error) from error

    def count(self) -> int:
        """Pictures in it now."""
        from pymilvus import MilvusException

        try:
            found = self._client.query(self.name, output_fields=["count(*)"], consistency_level="Strong")
        except MilvusException as error:
            raise self._failed("counted", error) from error
        return int(found[0]["count(*)"])

    def keys(self) -> Iterator[str]:
        """The SHA-256 of every picture in it."""
        from pymilvus import MilvusException

        try:
            pages = self._client.query_iterator(
                self.name, batch_size=KEYS, output_fields=["sha256"], consistency_level="Strong"
            )
            while page := pages.next():
                yield from (row["sha256"] for row in page)
            pages.close()
        except MilvusException as error:
            raise self._failed("listed", error) from error

    def add(self, pictures: Iterable[tuple[str, np.ndarray]]) -> None:
        """SHA-256 and vector float32 [dimension] of each; what is there already stays once."""
        from pymilvus import MilvusException

        try:
            for some in _batches(pictures, max(1, BATCH_NUMBERS // self.dimension)):
                rows = [{"sha256": sha256, "vector": np.asarray(vector)} for sha256, vector in some]
                self._client.upsert(self.name, rows)
            self._client.flush(self.name)
        except MilvusException as error:
            raise self._failed("written to", error) from error

    def remove(self, keys: Iterable[str]) -> None:
        """The pictures with these SHA-256; those that are not there are none of them."""
        from pymilvus import MilvusException

        try:
            for some in _batches(keys, KEYS):
                self._client.delete(self.name, ids=some)
        except MilvusException as error:
            raise self._failed("written to", error) from error

    def search(self, queries: np.ndarray, limit: int) -> list[list[tuple[str, float]]]:
        """SHA-256 and cosine of at most `limit` pictures nearest to each query, best first."""
        from pymilvus import MilvusException

        try:
            effort = {"HNSW": "ef", "DISKANN": "search_list"}.get(self._index, "")
            parameters = {effort: max(2 * limit, 128)} if effort else {}
            found = self._client.search(
                self.name,
                data=list(queries),
                limit=limit,
                anns_field="vector",
                output_fields=["sha256"],
                search_params={"metric_type": "COSINE", "params": parameters},
            )
        except MilvusException as error:
            raise self._failed("searched", error) from error
        return [[(hit["sha256"], float(hit["distance"])) for hit in hits] for hits in found]

    @cached_property
    def _index(self) -> str:
        return self._index_type()

    def _index_type(self) -> str:
        return str(self._client.describe_index(self.name, "vector")["index_type"])

    def close(self) -> None:
        """Let go of the client, and of a local file, which is one process's at a time."""
        self._client.close()
        release(self.where)

    def _failed(self, done: str, error: Exception) -> UserError:
        reason = " ".join(str(getattr(error, "message", error)).split())[:200]
        return UserError(
            f"the collection {self.name} at {self.where} can't be {done} ({reason}); see that Milvus runs, "
            "or make it anew with `cmpl index`"
        )


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
                f"expected {len(sha256s):,}; run `cmpl index` again"
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
                    "gallery; run `cmpl index` again"
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
        raise UserError(f"the Milvus file {where} is gone; put it back or run `cmpl index` again")
    collection = Collection(where, address.collection, dimension)
    if not collection.exists():
        raise UserError(f"there is no collection {address.collection} at {where}; run `cmpl index` again")
    collection.load()
    return MilvusEngine(collection, sha256s)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
