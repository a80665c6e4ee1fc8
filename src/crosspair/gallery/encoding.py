"""Pictures to vectors as fast as the machine allows: read, decoded and resized by threads, encoded by others meanwhile.

A picture whose bytes were encoded before, under whatever name, is recognised by its checksum and only read.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crosspair.data.ahead import work_ahead
from crosspair.data.images import ImageError, decode_image
from crosspair.encode.backends import (
    LEAST_COSINE,
    SAMPLE,
    FeatureBackend,
    OpenVINOBackend,
    exactness_on,
    feature_backends,
)
from crosspair.errors import UserError
from crosspair.gallery.sources import Entry, NoImageError
from crosspair.gallery.thumbnails import encode_thumbnail, thumbnail_path
from crosspair.models.dual_encoder import DualEncoder

READ_AT_ONCE = 8  # files a task
T = TypeVar("T")


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
        for some in work_ahead(self._read_some, _groups(enumerate(entries), READ_AT_ONCE), threads):
            yield from some

    def _read_some(self, entries: Iterable[tuple[int, Entry]]) -> list[SourceImage]:
        return [self._read(number, entry) for number, entry in entries]

    def _read(self, number: int, entry: Entry) -> SourceImage:
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
    """Groups of pictures with their vectors float32 [group, d] of unit length, and the runtime that encoded them.

    backend: auto, torch, openvino-bf16 or openvino-f32; auto takes the fastest whose features have a cosine of at least
    0.999 on average to PyTorch's in float32, measured on the first pictures. tell: is given what was measured.
    """
    sample = list(islice(images, SAMPLE))
    if not sample:
        return
    chosen = _choose(model, backend, sample, tell)
    groups = _groups(chain(sample, images), chosen.group(1))

    def encode(group: list[SourceImage]) -> tuple[list[SourceImage], np.ndarray]:
        return group, chosen.encode(_stack(group), 1)[:, 0]

    encoded = work_ahead(encode, groups, threads) if chosen.in_threads else map(encode, groups)
    for group, features in encoded:
        yield group, _embed(model, features), chosen.name


@torch.inference_mode()
def _embed(model: DualEncoder, features: np.ndarray) -> np.ndarray:
    embeddings = model.embed_image_features(torch.from_numpy(features).to(model.device))
    vectors: np.ndarray = F.normalize(embeddings.float(), dim=1).cpu().numpy()
    return vectors


def choose_backend(model: DualEncoder, setting: str, sample: list[SourceImage], tell: Callable[[str], object]) -> str:
    """What `encode_images` would encode with when the sample came first: a runtime that is no longer `auto`."""
    chosen = _choose(model, setting, sample, tell)
    return chosen.name if isinstance(chosen, OpenVINOBackend) else "torch"


def _choose(
    model: DualEncoder, setting: str, sample: list[SourceImage], tell: Callable[[str], object]
) -> FeatureBackend:
    if setting == "auto" and len(sample) < SAMPLE:
        setting = "torch"  # has encoded so few before another runtime is ready
    *others, last = feature_backends(model, setting, "32-true", nullcontext)
    for backend in [*others, last]:
        try:
            backend.prepare()
        except UserError as error:
            if setting != "auto":
                raise
            tell(f"not encoding by {backend.name}: {error}")
            continue
        if setting != "auto" or not isinstance(backend, OpenVINOBackend):
            return backend
        seen = exactness_on(_stack(sample), backend, model)
        tell(f"{'' if seen.mean >= LEAST_COSINE else 'not '}encoding by {backend.name}: {seen}")
        if seen.mean >= LEAST_COSINE:
            return backend
    return last


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _stack(images: Iterable[SourceImage]) -> Tensor:
    return torch.stack([image.pixels for image in images if image.pixels is not None])


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all when the process is killed."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")  # other machines may write the same one
    temporary.write_bytes(data)
    temporary.replace(path)
