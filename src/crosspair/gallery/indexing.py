"""`crosspair index`: a folder of images or a DATA directory into a gallery, and later what has changed in it.

Every image is read and its checksum compared; only those not seen before are encoded. What a killed run has encoded
is in GALLERY/.partial, from where the next one goes on; the gallery itself changes at once, when everything is there.
"""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspair.data.records import printable
from crosspair.devices import find_device
from crosspair.encode.locate import locate
from crosspair.encode.model import DualEncoder
from crosspair.encode.storage import model_checksum
from crosspair.errors import UserError
from crosspair.gallery.encoding import EncodedImages, ImageReader, SourceImage, encode_images, encoded_bytes
from crosspair.gallery.engines.engine import Content, Renewal, Request, open_renewal
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.items import Item, write_embeddings, write_items
from crosspair.gallery.layout import (
    EMBEDDINGS,
    INDEX,
    ITEMS,
    THUMBNAILS,
    Manifest,
    Place,
    Skipped,
    commit,
    finish_commit,
    is_unfinished,
    new_state,
    work_folder,
)
from crosspair.gallery.sources import Source, open_source
from crosspair.progress import progress_bar
from crosspair.storage.directories import kind_of
from crosspair.storage.files import claimed, full_disk_is_an_error

if TYPE_CHECKING:
    from crosspair.gallery.ray import DonePart

BLOCK = 8192  # vectors copied at a time
CAPTIONS = 500  # at least, where there are so many, to measure an index with
FLUSH_SECONDS = 1.0  # at most so much work is lost when the process is killed


@dataclass(frozen=True)
class IndexSummary:
    """The outcome of an indexing run. Images are counted as items: two files of the same bytes are two."""

    output: Path
    count: int
    encoded: int  # by this run
    taken_over: int  # from an interrupted run
    kept: int  # from the gallery as it was
    removed: int  # that the gallery had and the source has no more
    skipped: list[Skipped]
    other_files: dict[str, int]
    index: dict[str, Any]
    backends: list[str]
    seconds: float


def index_images(
    model_name: str | Path,
    source: Path,
    output: Path,
    *,
    splits: list[str] | None = None,
    threads: int | None = None,
    backend: str = "auto",
    engine: str | None = None,
    address: str | None = None,
    distributed: str | None = None,
    ray_workers: int | None = None,
    device: str = "auto",
    progress: bool = True,
    tell: Callable[[str], object] = lambda line: None,
) -> IndexSummary:
    """Make or renew the gallery `output` of the images in `source`, a folder or a DATA directory.

    model_name: a model's directory or hub name. splits: of DATA, by default all. threads: so many read images
    and so many encode them, default one a core. backend: auto, torch, openvino-bf16, openvino-f32 or
    onnxruntime-f32. device: of PyTorch, auto, cpu, cuda, cuda:1 or mps. engine:
    the registered name of a search engine, by default the gallery's or else auto. address: of Milvus, a cluster's or a
    local file. distributed: "ray" has a Ray cluster encode with `ray_workers` actors; without it this machine does, on
    `device`. tell: is given a line about what images are encoded with.

    Raises UserError when the gallery was made with another model or of another source, when another process writes to
    it, and when there is no image that can be read.
    """
    start = time.monotonic()
    for name, count in (("threads", threads), ("ray_workers", ray_workers)):
        if count is not None and count < 1:
            raise UserError(f"found {count} {name}; expected at least 1")
    find_device(device)  # before anything is read
    _refuse_foreign(output)
    files = locate(str(model_name))
    if distributed is not None and files.is_pair:
        raise UserError(
            f"{model_name} is a ready-made pair of {files.library}, which Ray does not take; leave out --distributed"
        )
    checksum = model_checksum(str(model_name))
    opened = open_source(source, splits)
    with _claimed(output) as work, _cluster(distributed):
        previous = _previous(output, checksum, opened)
        model = DualEncoder.from_pretrained(model_name, device=device)
        store = EncodedImages(work, model.config.projection.dim, {"model": checksum})
        renewal: Renewal | None = None
        try:
            known = None if previous is None else previous.manifest.engine
            before = None if previous is None else previous.content()
            engine, renewal = open_renewal(engine, known, Request(output, work, store.dimension, address, before))
            run = _Run(opened, output, model, previous, store)
            if distributed is None:
                run.encode(backend, threads or os.cpu_count() or 1, progress, tell)
            else:
                from crosspair.gallery.ray import encode_parts

                parts = encode_parts(
                    model,
                    files.directory,
                    opened,
                    output,
                    work,
                    run.known_by_name(),
                    settings={"model": checksum},
                    backend=backend,
                    device=device,
                    workers=ray_workers,
                    tell=tell,
                )
                run.merge(parts, progress)
            manifest = run.write(_model_place(model_name, output), checksum, engine, renewal)
        finally:
            store.close()
            if renewal is not None:
                renewal.close()
    run.remove_unused_thumbnails()
    return IndexSummary(
        output,
        manifest.count,
        run.encoded,
        store.taken_over,
        run.kept,
        run.removed,
        manifest.skipped,
        manifest.other_files,
        manifest.index,
        manifest.backends,
        time.monotonic() - start,
    )


class _Run:
    """One run over a source: what was found of each entry, and the vectors it goes with."""

    def __init__(
        self, source: Source, output: Path, model: DualEncoder, previous: Gallery | None, store: EncodedImages
    ) -> None:
        self.source = source
        self.output = output
        self.model = model
        self.previous = previous
        self.store = store
        self.skipped = list(source.skipped)
        self.other_files: Counter[str] = Counter()
        self.images: list[SourceImage] = []
        self.encoded = 0
        self._previous_rows: dict[str, int] = {}
        if previous is not None:
            self._previous_rows = {sha256: row for row, sha256 in enumerate(previous.items["sha256"])}

    def encode(self, backend: str, threads: int, progress: bool, tell: Callable[[str], object]) -> None:
        """Read everything, encode what is new."""
        reader = ImageReader(self.model, self.output / THUMBNAILS, self._size)
        flushed = time.monotonic()
        with progress_bar(total=len(self.source.entries), unit=" pictures", desc="index", disable=not progress) as bar:

            def fresh() -> Iterator[SourceImage]:
                for image in reader.read_all(self.source.entries, threads):
                    if image.pixels is not None:
                        yield image
                    else:
                        self._note(image)
                        bar.update()

            for group, vectors, name in encode_images(self.model, fresh(), backend=backend, threads=threads, tell=tell):
                self.store.add(group, vectors, name)
                for image in group:
                    image.pixels = None
                    self.images.append(image)
                self.encoded += len(group)
                bar.update(len(group))
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    self.store.flush()
                    flushed = time.monotonic()

    def merge(self, parts: "Iterator[DonePart]", progress: bool) -> None:
        """Take over what other machines encoded, every part of the source once."""
        seen = 0
        with progress_bar(total=len(self.source.entries), unit=" pictures", desc="index", disable=not progress) as bar:
            for part in parts:
                for image, vector in part.images:
                    if vector is None:
                        self._note(image)
                        continue
                    if image.sha256 not in self.store and image.sha256 not in self._previous_rows:
                        self.store.add([image], vector[None], part.backend)
                        self.store.taken_over += not part.by_this_run
                    self.images.append(image)
                    self.encoded += part.by_this_run
                self.store.flush()
                seen += len(part.images)
                bar.update(len(part.images))
        if seen != len(self.source.entries):
            raise RuntimeError(f"merged {seen} of {len(self.source.entries)} pictures")

    def known_by_name(self) -> dict[tuple[str | None, str], tuple[str, int, int]]:
        """SHA-256, width and height of the gallery's images as it is, by split and item id."""
        if self.previous is None:
            return {}
        items = self.previous.items
        names = zip(items["split"], items["item_id"], strict=True)
        facts = zip(items["sha256"], map(int, items["width"]), map(int, items["height"]), strict=True)
        return dict(zip(names, facts, strict=True))

    def _size(self, sha256: str) -> tuple[int, int] | None:
        """Width and height of an image encoded before."""
        if sha256 in self._previous_rows and self.previous is not None:
            row = self._previous_rows[sha256]
            return self.previous.items["width"][row], self.previous.items["height"][row]
        return self.store.size(sha256) if sha256 in self.store else None

    def _note(self, image: SourceImage) -> None:
        entry = self.source.entries[image.number]
        if image.problem is not None:
            self.skipped.append(Skipped(printable(entry.item_id), image.problem))
        elif image.is_none:
            self.other_files[PurePosixPath(entry.item_id).suffix or "without a suffix"] += 1
        else:
            self.images.append(image)

    def write(self, model: Place | str, checksum: str, engine: str, renewal: Renewal) -> Manifest:
        """Make what was found the gallery's new state; its manifest. Raises UserError when there is no image."""
        if not self.images:
            tried = f"none of {len(self.skipped):,} can be read, {_first(self.skipped)}" if self.skipped else "none"
            raise UserError(f"found no picture in {self.source.path} ({tried}); expected at least one that can be read")
        self.images.sort(key=lambda image: image.number)
        items = [self._item(image) for image in self.images]
        manifest = Manifest(
            model,
            checksum,
            Place.of(self.source.path, self.output),
            self.source.kind,
            self.source.splits,
            self.model.config.projection.dim,
            len(items),
            sorted(self.store.backends | set(self.previous.manifest.backends if self.previous else ())),
            {},
            engine,
            skipped=self.skipped,
            other_files=dict(sorted(self.other_files.items())),
        )
        with new_state(self.output) as folder:
            write_items(folder / ITEMS, items)
            write_embeddings(folder / EMBEDDINGS, self._vectors(), (len(items), manifest.dimension))
            vectors = np.load(folder / EMBEDDINGS, mmap_mode="r")
            content = Content(
                self.output,
                vectors,
                folder / INDEX,
                keys=lambda: [item.sha256 for item in items],
                captions=lambda: self._captions(items),
            )
            manifest = replace(manifest, index={"kind": engine, **renewal.add(content)})
            commit(self.output, folder, manifest)
        renewal.finish({item.sha256 for item in items})
        return manifest

    def _captions(self, items: list[Item]) -> np.ndarray | None:
        """Vectors of a few captions that belong to the images, from all over the gallery."""
        with_captions = [item.captions[0] for item in items[:: max(1, len(items) // CAPTIONS)] if item.captions]
        if not with_captions:
            return None
        vectors: np.ndarray = self.model.encode_text(with_captions).numpy()
        return vectors

    def _item(self, image: SourceImage) -> Item:
        entry = self.source.entries[image.number]
        place = (entry.item_id, entry.path, entry.split, entry.data_row)
        return Item(*place, image.sha256, *image.size, image.bytes, entry.label, entry.captions)

    def _vectors(self) -> Iterator[np.ndarray]:
        """Vectors of the images in their order, in blocks."""
        made = self.store.vectors()
        for start in range(0, len(self.images), BLOCK):
            some = self.images[start : start + BLOCK]
            yield np.stack([self._vector(image.sha256, made) for image in some])

    def _vector(self, sha256: str, made: np.ndarray) -> np.ndarray:
        vector: np.ndarray
        if self.previous is not None and sha256 in self._previous_rows:
            vector = self.previous.embeddings[self._previous_rows[sha256]]
        else:
            vector = made[self.store.row(sha256)]
        return vector

    @property
    def kept(self) -> int:
        return sum(image.sha256 in self._previous_rows for image in self.images)

    @property
    def removed(self) -> int:
        if self.previous is None:
            return 0
        found = {self.source.entries[image.number].item_id for image in self.images}
        return sum(item_id not in found for item_id in self.previous.items["item_id"])

    def remove_unused_thumbnails(self) -> None:
        """Remove thumbnails of images that are gone, and half-written ones of a killed run."""
        used = {f"{image.sha256}.jpg" for image in self.images}
        for path in (self.output / THUMBNAILS).glob("*/*"):
            if path.name not in used:
                path.unlink()


def _cluster(distributed: str | None) -> AbstractContextManager[None]:
    if distributed is None:
        return nullcontext()
    from crosspair.gallery.ray import connected

    return connected()


def _first(skipped: list[Skipped]) -> str:
    return f"{skipped[0].item_id} {skipped[0].reason}"


def _model_place(name: str | Path, output: Path) -> Place | str:
    return Place.of(Path(name), output) if Path(name).is_dir() else str(name)


def _refuse_foreign(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; expected a directory for the gallery, name another --output")
    if output.is_dir() and kind_of(output) != "GALLERY":
        for path in output.iterdir():
            raise UserError(f"{output} holds {path.name}, which is no gallery's; name a new directory as --output")


@contextmanager
def _claimed(output: Path) -> Iterator[Path]:
    """The folder for what is under way, this process's alone; it stays when a run fails that has encoded something."""
    work = work_folder(output)
    with full_disk_is_an_error(output), claimed(work, f"the gallery {output}"):
        try:
            finish_commit(output)
            yield work
        except BaseException:
            if kept := encoded_bytes(work):
                print(f"kept {kept / 1e6:,.1f} MB of embeddings in {work}; the same command goes on", file=sys.stderr)
            else:
                shutil.rmtree(work)
                _remove_nothing(output)
            raise
        shutil.rmtree(work)


def _remove_nothing(output: Path) -> None:
    """Remove what a run without a result leaves, where there was no gallery before."""
    if kind_of(output) != "GALLERY":
        shutil.rmtree(output / THUMBNAILS, ignore_errors=True)
        if not any(output.iterdir()):
            output.rmdir()


def _previous(output: Path, checksum: str, source: Source) -> Gallery | None:
    """The gallery as it is, its files checked. Raises UserError when it is of another model or source."""
    if is_unfinished(output):
        return None
    gallery = Gallery.open(output)
    if gallery.manifest.model_checksum != checksum:
        raise UserError(f"{output} was made with another model; name a new --output")
    place = gallery.manifest.source.find(output)
    if place.exists() and place.resolve() != source.path.resolve():
        raise UserError(f"{output} is a gallery of {place}; index {source.path} into a new --output")
    gallery.verify()
    return gallery
