"""The client of Milvus: connection to a cluster or a local file, and a collection of vectors in it."""

import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from crosspair.errors import UserError
from crosspair.gallery.layout import Place
from crosspair.storage.files import write_text

if TYPE_CHECKING:
    from pymilvus import MilvusClient

TOKEN = "CROSSPAIR_MILVUS_TOKEN"  # user:password, or a key; never written down
BATCH_NUMBERS = 1 << 20  # of vectors in one request: 4 MB, far below the 64 MB that a server takes
KEYS = 1000  # read or removed at a time
MOST_HITS = 16_384  # that Milvus gives for one query
SECONDS = 10.0  # to reach a server
EXACT_UP_TO = 100_000  # images
IN_MEMORY_UP_TO = 100_000_000  # images; 205 GB of 512 float32 numbers
T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """The address of a collection: a cluster's, or a local file as seen from the gallery; one of the two is given."""

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
    def from_facts(cls, index: dict[str, Any]) -> "Address":
        """The address in gallery.json's `index`. Raises UserError when there is none."""
        try:
            facts = index["address"]
            file = facts["file"]
            return cls(str(facts["collection"]), facts["uri"], None if file is None else Place(**file))
        except (KeyError, TypeError) as error:
            raise UserError("gallery.json names no Milvus collection; copy the gallery again or index anew") from error

    def facts(self) -> dict[str, Any]:
        """The address as gallery.json stores it."""
        return asdict(self)

    def find(self, gallery: Path) -> str:
        """The address or path that pymilvus connects to."""
        return self.uri if self.uri is not None else str(self.file.find(gallery)) if self.file else ""


def collection_name(work: Path) -> str:
    """The name of a new collection, or of the one that an interrupted first run has begun."""
    path = work / "collection"
    if not path.is_file():
        write_text(path, f"crosspair_{uuid.uuid4().hex}")
    return path.read_text(encoding="utf-8")


def connect(where: str) -> "MilvusClient":
    """A client of a cluster or a local file. Raises UserError when pymilvus is missing or nobody answers."""
    try:
        from pymilvus import MilvusClient, MilvusException
    except ImportError as error:
        raise UserError("the engine milvus needs the package pymilvus; run: pip install 'crosspair[milvus]'") from error
    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # they print whole tracebacks of what is one sentence here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return MilvusClient(where, token=os.environ.get(TOKEN, ""), timeout=SECONDS)
    except MilvusException as error:
        reason = " ".join(str(error.message).split())[:200]
        if "://" not in where:
            hint = "see that no other process has it open, such as `crosspair serve`"
            raise UserError(f"can't open the Milvus file {where} ({reason}); {hint}") from error
        hint = f"see that it runs and that {TOKEN} holds its token, if it wants one"
        raise UserError(f"can't reach Milvus at {where} ({reason}); {hint}") from error


def release(where: str) -> None:
    """Release a local file for other processes; nothing to do for a cluster."""
    if "://" not in where:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(where)


def index_kind(where: str, count: int) -> tuple[str, dict[str, int]]:
    """The index for a collection of `count` images, and its parameters.

    A local file is compared with whole. So are a cluster's first 100,000; then comes a graph in memory, then on disks.
    """
    if "://" not in where or count <= EXACT_UP_TO:
        return "FLAT", {}
    return ("HNSW", {"M": 16, "efConstruction": 200}) if count <= IN_MEMORY_UP_TO else ("DISKANN", {})


class Collection:
    """The vectors of one gallery in Milvus, under the SHA-256 of their images."""

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
                f"{self.dimension}; drop the collection and run `crosspair index` again"
            )
        return True

    def create(self, count: int) -> None:
        """Create the collection for about `count` images; where it exists, its index is made the one for so many."""
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
        """Load the collection into the server, ready to be searched."""
        from pymilvus import MilvusException

        try:
            self._client.load_collection(self.name)
        except MilvusException as error:
            raise self._failed("loaded", error) from error

    def count(self) -> int:
        """Images in it now."""
        from pymilvus import MilvusException

        try:
            found = self._client.query(self.name, output_fields=["count(*)"], consistency_level="Strong")
        except MilvusException as error:
            raise self._failed("counted", error) from error
        return int(found[0]["count(*)"])

    def keys(self) -> Iterator[str]:
        """The SHA-256 of every image in it."""
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

    def add(self, images: Iterable[tuple[str, np.ndarray]]) -> None:
        """SHA-256 and vector float32 [dimension] of each; what is there already stays once."""
        from pymilvus import MilvusException

        try:
            for some in _batches(images, max(1, BATCH_NUMBERS // self.dimension)):
                rows = [{"sha256": sha256, "vector": np.asarray(vector)} for sha256, vector in some]
                self._client.upsert(self.name, rows)
            self._client.flush(self.name)
        except MilvusException as error:
            raise self._failed("written to", error) from error

    def remove(self, keys: Iterable[str]) -> None:
        """The images with these SHA-256; those that are not there are none of them."""
        from pymilvus import MilvusException

        try:
            for some in _batches(keys, KEYS):
                self._client.delete(self.name, ids=some)
        except MilvusException as error:
            raise self._failed("written to", error) from error

    def search(self, queries: np.ndarray, limit: int) -> list[list[tuple[str, float]]]:
        """SHA-256 and cosine of at most `limit` images nearest to each query, best first."""
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
        """Close the client, and release a local file, which is one process's at a time."""
        self._client.close()
        release(self.where)

    def _failed(self, done: str, error: Exception) -> UserError:
        reason = " ".join(str(getattr(error, "message", error)).split())[:200]
        return UserError(
            f"the collection {self.name} at {self.where} can't be {done} ({reason}); see that Milvus runs, "
            "or make it anew with `crosspair index`"
        )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
