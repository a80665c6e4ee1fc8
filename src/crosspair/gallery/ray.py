"""Encoding the images of a gallery on many machines, by Ray Data.

The list of images is cut into parts of consecutive ones. A worker writes what it made of a part to a file under a
temporary name and gives it its own name when it is whole; a part done twice, because a worker died or was thought to be
dead, takes its own place. The process that began it all reads each part's file once, in whatever order they come, so no
image is lost and none is there twice. A part's name is a checksum of what it is made from: parts that an interrupted
run left are taken when they are of the same images, model and backend, and nothing else is.

All machines see the images and the gallery under the same paths; a copy of the model is put beside the parts.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosspair.data.dataset import Data, open_data
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.gallery.encoding import ImageReader, SourceImage, choose_setting, encode_images
from crosspair.gallery.layout import THUMBNAILS
from crosspair.gallery.sources import Entry, Source, folder_entry
from crosspair.registry import load_plugin, loaded_plugins
from crosspair.storage.files import whole_file

PART = 1024  # images; what a worker that dies loses at most
SECONDS = 5.0  # to reach a cluster
TRIES = 5  # of a part whose workers die, before the run is given up


@dataclass(frozen=True)
class Job:
    """Settings that all workers are given. Paths are absolute and the same on every machine."""

    source: str
    kind: str  # folder or data
    thumbnails: str
    parts: str  # the folder for their files
    model: str  # a copy of its directory
    backend: str  # the same for all: torch, openvino-bf16, openvino-f32 or onnxruntime-f32
    device: str  # auto or cpu
    plugins: tuple[str, ...] = ()  # the model's encoders may come from them


@dataclass(frozen=True)
class Part:
    """Consecutive entries of a source. known: size of images of the gallery as it is, by their SHA-256."""

    name: str
    first: int
    entries: list[tuple[str, str | None, int | None]]  # item id, split, row of the split
    known: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class DonePart:
    """A part's images in the order of the source, with a vector for those that were encoded."""

    images: list[tuple[SourceImage, np.ndarray | None]]
    backend: str
    by_this_run: bool


def encode_parts(
    model: DualEncoder,
    model_directory: Path,
    source: Source,
    output: Path,
    work: Path,
    known: dict[tuple[str | None, str], tuple[str, int, int]],
    *,
    settings: dict[str, str],
    backend: str,
    device: str,
    workers: int | None,
    tell: Callable[[str], object],
) -> Iterator[DonePart]:
    """Every part of the source once, as they get done; first those that an interrupted run left.

    model_directory: of its files. known: SHA-256, width and height of the images of the gallery as it is, by split
    and item id. settings: what else vectors depend on. workers: by default one a GPU of the cluster, or else one a
    core. To be called while `connected`. Raises UserError when a worker does not see the images or the gallery, and
    when workers keep dying.
    """
    ray = _import_ray()
    gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    chosen = "torch" if gpus else _choose(model, source, output, backend, tell)
    job = Job(
        str(source.path.resolve()),
        source.kind,
        str((output / THUMBNAILS).resolve()),
        str(work.resolve() / "parts"),
        str(work.resolve() / "model"),
        chosen,
        "auto" if gpus else "cpu",
        tuple(plugin.source for plugin in loaded_plugins()),
    )
    _prepare_folders(job, model_directory)
    missing = []
    for part in cut(source, known, {**settings, "backend": chosen}):
        if _path(job, part.name).is_file():
            yield read_part(job, part, by_this_run=False)
        else:
            missing.append(part)
    if not missing:
        return
    number = workers or gpus or int(ray.cluster_resources().get("CPU", 1))
    tell(f"encoding by {chosen} in {len(missing):,} parts, {number} workers")
    by_name = {part.name: part for part in missing}
    for name in _run(job, missing, min(number, len(missing)), gpu=bool(gpus)):
        if name in by_name:  # a part that is reported twice is merged once
            yield read_part(job, by_name.pop(name), by_this_run=True)
    if by_name:
        raise RuntimeError(f"Ray ended without {len(by_name)} parts")


def _import_ray() -> Any:
    """The module, with `ray.data`, sending no statistics. Raises UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its C++ parts, which warn of what Ray Data itself does
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("--distributed ray needs the package ray; run: pip install 'crosspair[ray]'") from error
    return ray


@contextmanager
def connected() -> Iterator[None]:
    """A connection to RAY_ADDRESS's cluster; without it, to one that runs on this machine, or else to a new one.

    Enter it before other libraries have started threads: Ray forks this process. Raises UserError.
    """
    ray = _import_ray()
    was_connected = bool(ray.is_initialized())
    if not was_connected:
        try:
            _knock(os.environ.get("RAY_ADDRESS", ""))
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            where = os.environ.get("RAY_ADDRESS", "this machine")
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"can't reach a Ray cluster at {where} ({reason}); see that it runs, or unset RAY_ADDRESS"
            ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        if not was_connected:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), SECONDS).close()


def _prepare_folders(job: Job, model: Path) -> None:
    """Copy the model's files for the workers, and reset the counts of earlier runs' attempts."""
    for folder in (job.parts, job.model):
        Path(folder).mkdir(exist_ok=True)
    for path in Path(job.parts).glob("*.tries"):
        path.unlink()
    for path in model.iterdir():
        if path.is_file():
            shutil.copyfile(path, Path(job.model) / path.name)


def _choose(model: DualEncoder, source: Source, output: Path, setting: str, tell: Callable[[str], object]) -> str:
    """One backend for all workers, so that a part is the same whoever makes it."""
    reader = ImageReader(model, output / THUMBNAILS, lambda sha256: None)
    read = reader.read_all(source.entries[:PART], 1)
    sample = list(islice((image for image in read if image.pixels is not None), 64))
    return choose_setting(model, setting, sample, tell) if sample else "torch"


def cut(
    source: Source, known: dict[tuple[str | None, str], tuple[str, int, int]], settings: dict[str, str]
) -> Iterator[Part]:
    """The source in parts, each named after all that its contents depend on."""
    checksums = _data_checksums(source)
    for first in range(0, len(source.entries), PART):
        entries = source.entries[first : first + PART]
        before = [known.get((entry.split, entry.item_id)) for entry in entries]
        files = [_size_and_time(source.path / entry.path) if entry.path is not None else None for entry in entries]
        named = [(entry.item_id, entry.split, entry.data_row) for entry in entries]
        made_from = [settings, checksums, str(source.path.resolve()), first, named, before, files]
        name = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        yield Part(name, first, named, {seen[0]: (seen[1], seen[2]) for seen in before if seen is not None})


def _data_checksums(source: Source) -> list[str]:
    if source.kind != "data":
        return []
    data = open_data(source.path)
    return [str(data.split(name).checksum) for name in source.splits]


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _run(job: Job, parts: list[Part], workers: int, *, gpu: bool) -> Iterator[str]:
    """The names of parts as they get done, some perhaps twice."""
    from ray.exceptions import RayError

    ray = _import_ray()
    rows = [{"part": json.dumps(asdict(part))} for part in parts]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        PartEncoder,
        fn_constructor_args=(asdict(job),),
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        num_gpus=1 if gpu else None,
    )
    try:
        for row in done.iter_rows():
            if row["problem"]:
                raise UserError(str(row["problem"]))
            yield str(row["name"])
    except RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"Ray could not encode all parts ({reason}); see its logs, the same command goes on with the parts left"
        ) from error


class PartEncoder:
    """A worker: an actor on one core, or with one GPU, of any machine."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._job = Job(**job)
        self._problem = ""
        for path in (self._job.source, self._job.parts):
            if not Path(path).is_dir():
                machine = platform.node()
                self._problem = f"the machine {machine} does not see {path}; put it on a disk that all machines share"
                return
        try:
            for plugin in self._job.plugins:
                load_plugin(plugin)
        except UserError as error:
            self._problem = f"on the machine {platform.node()}, {error}"
            return
        self._model = DualEncoder.from_pretrained(self._job.model, device=self._job.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        described = json.loads(row["part"])
        known = {sha256: (size[0], size[1]) for sha256, size in described["known"].items()}
        part = Part(described["name"], described["first"], [tuple(entry) for entry in described["entries"]], known)
        problem = self._problem
        if not problem:
            try:
                self._encode(part)
            except UserError as error:  # what Ray makes of exceptions is many lines
                problem = str(error)
        return {"name": part.name, "problem": problem}

    def _encode(self, part: Part) -> None:
        # Ray gives a part to other workers for ever: an image that kills them all has to end the run.
        tries = _path(self._job, part.name).with_suffix(".tries")
        with tries.open("ab") as file:
            file.write(b".")
            tried = file.tell()
        if tried > TRIES:
            last = part.first + len(part.entries)
            raise UserError(
                f"{TRIES} workers died at pictures {part.first + 1:,} to {last:,}, from {part.entries[0][0]} on; "
                "see Ray's logs for the reason (memory, or a picture among them)"
            )
        write_part(self._job, part, self._model)
        tries.unlink(missing_ok=True)


def write_part(job: Job, part: Part, model: DualEncoder) -> None:
    """Encode a part and leave its file, whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    entries = [_entry(job, *named) for named in part.entries]
    reader = ImageReader(model, Path(job.thumbnails), part.known.get)
    images: list[SourceImage | None] = [None] * len(entries)
    vectors: list[bytes | None] = [None] * len(entries)

    def fresh() -> Iterator[SourceImage]:
        for image in reader.read_all(entries, 1):
            images[image.number] = image
            if image.pixels is not None:
                yield image

    backend = ""
    for group, made, name in encode_images(model, fresh(), backend=job.backend, threads=1, tell=lambda line: None):
        backend = name
        for image, vector in zip(group, made, strict=True):
            vectors[image.number] = np.ascontiguousarray(vector, np.float32).tobytes()
            image.pixels = None
    seen = [image for image in images if image is not None]
    columns = {
        "sha256": [image.sha256 for image in seen],
        "bytes": [image.bytes for image in seen],
        "width": [image.size[0] for image in seen],
        "height": [image.size[1] for image in seen],
        "problem": pa.array([image.problem for image in seen], pa.string()),
        "is_none": [image.is_none for image in seen],
        "vector": pa.array(vectors, pa.binary()),
    }
    table = pa.table(columns).replace_schema_metadata({"backend": backend})
    with whole_file(_path(job, part.name), shared=True) as file:
        pq.write_table(table, file, compression="none")


def read_part(job: Job, part: Part, *, by_this_run: bool) -> DonePart:
    """Read what `write_part` wrote. Raises UserError when it has other than a row for every image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _path(job, part.name)
    try:
        table = pq.read_table(path, memory_map=True)
        rows = table.to_pylist()
        backend = (table.schema.metadata or {}).get(b"backend", b"").decode()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({error!s:.100}); remove it and run the same command again") from error
    if len(rows) != len(part.entries):
        raise UserError(f"{path} has {len(rows):,} pictures, expected {len(part.entries):,}; remove it and run again")
    images = []
    for number, row in enumerate(rows, start=part.first):
        vector = None if row["vector"] is None else np.frombuffer(row["vector"], np.float32)
        size = (row["width"], row["height"])
        known = vector is None and row["problem"] is None and not row["is_none"]
        image = SourceImage(number, row["sha256"], row["bytes"], size, known, None, row["problem"], row["is_none"])
        images.append((image, vector))
    return DonePart(images, backend, by_this_run)


def _path(job: Job, name: str) -> Path:
    return Path(job.parts) / f"{name}.parquet"


def _entry(job: Job, item_id: str, split: str | None, row: int | None) -> Entry:
    if split is None or row is None:
        return folder_entry(Path(job.source), item_id)
    data = _data(job.source)
    return Entry(item_id, lambda: data.split(split).image(row), None, split, row)


@cache
def _data(path: str) -> Data:
    return open_data(Path(path))
