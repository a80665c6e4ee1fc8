"""Images to vectors as fast as the machine allows: read, decoded and resized by threads, encoded by others meanwhile.

An image whose bytes were encoded before, under whatever name, is recognised by its checksum and only read.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crosspair.data.images import ImageError, decode_image
from crosspair.encode import backends
from crosspair.encode.backends import Backend, TorchBackend, agreement_on
from crosspair.encode.features import encode_in_groups
from crosspair.encode.model import DualEncoder
from crosspair.encode.reader import read_ahead
from crosspair.gallery.sources import Entry, NoImageError
from crosspair.gallery.thumbnails import encode_thumbnail, thumbnail_path

READ_AT_ONCE = 8  # files a task


@dataclass
class SourceImage:
    """A picture that was read: the number of its entry and what is known of it. One of the last four is given."""

    number: int
    sha256: str = ""
    bytes: int = 0
    size: tuple[int, int] = (0, 0)  # width and height in pixels, upright
    known: bool = False
    pixels: Tensor | None = None  # resized for the encoder
    problem: str | None = None
    is_none: bool = False  # no picture, nor does its name claim so


class ImageReader:
    """Reads entries, leaves their thumbnails in a folder and resizes what is to be encoded.

    known: width and height of a picture encoded before, by its SHA-256.
    """

    def __init__(self, model: DualEncoder, thumbnails: Path, known: Callable[[str], tuple[int, int] | None]) -> None:
        self._input = model.image_input
        self._thumbnails = thumbnails
        self._known = known

    def read_all(self, entries: list[Entry], threads: int) -> Iterator[SourceImage]:
        """In the order of the entries."""
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
        _write(thumbnail, encode_thumbnail(pixels))
        if size is not None:
            return SourceImage(number, sha256, len(data), size, known=True)
        upright = (pixels.shape[2], pixels.shape[1])
        return SourceImage(number, sha256, len(data), upright, pixels=self._input.resize(pixels))


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
    """What `encode_images` would encode with when the sample came first: a setting that is no longer `auto`."""
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


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all when the process is killed."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")  # other machines may write the same one
    temporary.write_bytes(data)
    temporary.replace(path)
