"""Image encoding for galleries: threads read, decode and resize images while others encode.

An image whose bytes were encoded before, under whatever name, is recognised by its checksum and only read.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosspair.data.images import ImageError, decode_image
from crosspair.encode import backends
from crosspair.encode.backends import Backend, TorchBackend, agreement_on
from crosspair.encode.features import encode_in_groups
from crosspair.encode.model import DualEncoder
from crosspair.encode.reader import read_ahead
from crosspair.encode.store import VectorStore
from crosspair.gallery.items import encode_thumbnail, thumbnail_path
from crosspair.gallery.sources import Entry, NoImageError
from crosspair.storage.files import whole_file

READ_AT_ONCE = 8  # files a task
_VECTORS = "vectors.f32"


@dataclass
class SourceImage:
    """An image that was read: the number of its entry and what is known of it. One of the last four is given."""

    number: int
    sha256: str = ""
    bytes: int = 0
    size: tuple[int, int] = (0, 0)  # width and height in pixels, upright
    known: bool = False
    pixels: Tensor | None = None  # resized for the encoder
    problem: str | None = None
    is_none: bool = False  # no image, nor does its name claim so


class ImageReader:
    """Reads entries, leaves their thumbnails in a folder and resizes what is to be encoded.

    known: width and height of an image encoded before, by its SHA-256.
    """

    def __init__(self, model: DualEncoder, thumbnails: Path, known: Callable[[str], tuple[int, int] | None]) -> None:
        self._input = model.image_input
        self._thumbnails = thumbnails
        self._known = known

    def read_all(self, entries: list[Entry], threads: int) -> Iterator[SourceImage]:
        """The entries' images, in the order of the entries."""
        return read_ahead(self._read, enumerate(entries), threads, at_once=READ_AT_ONCE)

    def _read(self, numbered: tuple[int, Entry]) -> SourceImage:
        number, entry = numbered
        try:
            data = entry.read()
            sha256 = hashlib.sha256(data).hexdigest()
            size = self._known(sha256)
            thumbnail = thumbnail_path(self._thumbnails, sha256)
            if size is not None and thumbnail.exists():
                return SourceImage(number, sha256, len(data), size, known=True)
            pixels = decode_image(data)
        except ImageError as error:
            return SourceImage(number, problem=error.reason)
        except NoImageError:
            return SourceImage(number, is_none=True)
        if not thumbnail.exists():
            with whole_file(thumbnail, shared=True, synced=False) as file:
                file.write(encode_thumbnail(pixels))
        if size is not None:
            return SourceImage(number, sha256, len(data), size, known=True)
        upright = (pixels.shape[2], pixels.shape[1])
        return SourceImage(number, sha256, len(data), upright, pixels=self._input.resize(pixels))


class EncodedImages:
    """Vectors that an indexing run has encoded so far, by the SHA-256 of their images, so that names don't matter.

    folder: that no other process writes to; what an earlier run left in it whole is taken over.
    settings: what the vectors depend on; what was made with others is thrown away.
    """

    def __init__(self, folder: Path, dimension: int, settings: dict[str, Any]) -> None:
        self._store = VectorStore(folder / _VECTORS, (dimension,), settings)
        self._rows = {image["sha256"]: row for row, image in enumerate(self._store.rows)}
        self.dimension = dimension
        self.taken_over = len(self._rows)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._rows

    def size(self, sha256: str) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        image = self._store.rows[self._rows[sha256]]
        return image["width"], image["height"]

    def row(self, sha256: str) -> int:
        """The row of an image in `vectors`."""
        return self._rows[sha256]

    @property
    def backends(self) -> set[str]:
        """The backends that the images were encoded by."""
        return {image["backend"] for image in self._store.rows}

    def add(self, images: Sequence[SourceImage], vectors: np.ndarray, backend: str) -> None:
        """vectors: float32 [images, dimension] of unit length."""
        rows: list[dict[str, Any]] = []
        for image in images:
            self._rows[image.sha256] = self._store.count + len(rows)
            width, height = image.size
            rows.append({"sha256": image.sha256, "width": width, "height": height, "backend": backend})
        self._store.append(vectors, rows)

    def flush(self) -> None:
        """Flush what was added to the operating system, so that it survives a kill of the process."""
        self._store.flush()

    def vectors(self) -> np.ndarray:
        """float32 [count, dimension], memory-mapped."""
        return self._store.vectors()

    def close(self) -> None:
        self._store.close()


def encoded_bytes(folder: Path) -> int:
    """Bytes of the vectors in a folder and of the parts that other machines have done; 0 where there are none."""
    files = [folder / _VECTORS, *(folder / "parts").glob("*.parquet")]
    return sum(path.stat().st_size for path in files if path.is_file())


def encode_images(
    model: DualEncoder, images: Iterator[SourceImage], *, backend: str, threads: int, tell: Callable[[str], object]
) -> Iterator[tuple[list[SourceImage], np.ndarray, str]]:
    """Groups of images with their vectors float32 [group, d] of unit length, and the name of what encoded them.

    backend: auto, torch, openvino-bf16, openvino-f32 or onnxruntime-f32; auto takes the fastest that agrees with
    PyTorch on the first images (`choose_backend`). tell: is given what was measured.
    """
    sample = list(islice(images, backends.SAMPLE))
    if not sample:
        return
    chosen = _choose(model, backend, sample, tell)
    for group, features in encode_in_groups(chain(sample, images), _pixels, chosen, threads=threads):
        yield group, model.encode_image_features(torch.from_numpy(features[:, 0])).numpy(), chosen.name


def choose_setting(model: DualEncoder, setting: str, sample: list[SourceImage], tell: Callable[[str], object]) -> str:
    """The backend that `encode_images` would choose with this sample first: a setting that is no longer `auto`."""
    chosen = _choose(model, setting, sample, tell)
    return "torch" if isinstance(chosen, TorchBackend) else chosen.name


def _choose(model: DualEncoder, setting: str, sample: list[SourceImage], tell: Callable[[str], object]) -> Backend:
    if setting == "auto" and len(sample) < backends.SAMPLE:
        setting = "torch"  # has encoded so few before another backend is ready

    def measure(backend: Backend) -> backends.Agreement:
        backend.prepare()
        return agreement_on(torch.stack([_pixels(image) for image in sample]), backend, model)

    return backends.choose_backend(model, setting, measure if setting == "auto" else None, tell=tell)


def _pixels(image: SourceImage) -> Tensor:
    assert image.pixels is not None
    return image.pixels
