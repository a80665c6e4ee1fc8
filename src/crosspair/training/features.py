"""Features of a frozen image encoder: each picture goes through it once (and once mirrored); they are kept on disk."""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from crosspair.data.ahead import work_ahead
from crosspair.encode.backends import (
    LEAST_COSINE,
    Exactness,
    FeatureBackend,
    feature_backends,
    load_resized,
    measure_exactness,
)
from crosspair.errors import UserError
from crosspair.models.dual_encoder import DualEncoder
from crosspair.progress import progress_bar
from crosspair.storage.cache import locked, user_cache
from crosspair.storage.files import full_disk_is_an_error, write_text

if TYPE_CHECKING:
    from crosspair.data.dataset import Split


def cache_directory() -> Path:
    """Where features are kept between runs."""
    return user_cache("features")


def choose_backend(
    model: DualEncoder,
    split: "Split",
    *,
    setting: str = "auto",
    precision: str = "32-true",
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    tell: Callable[[str], object] = lambda line: None,
) -> FeatureBackend:
    """What computes the features of a frozen encoder, by a recipe's `feature_backend` and `precision`.

    `auto` takes the fastest whose features have a cosine of at least 0.999 on average to PyTorch's in float32, measured
    once for an encoder on pictures of the split. autocast: entered around the encoder in PyTorch. tell: is given what
    was measured, in a line. Raises UserError for a runtime that can't be had.
    """
    *others, last = feature_backends(model, setting, precision, autocast)
    for backend in [*others, last]:
        if not backend.name.startswith("openvino"):
            return backend
        try:
            seen = _exactness(backend, model, split)
        except UserError as error:
            if setting != "auto":
                raise
            tell(f"image features not by {backend.name}: {error}")
            continue
        if setting != "auto" or seen.mean >= LEAST_COSINE:
            tell(f"image features by {backend.name}: {seen}")
            return backend
        tell(
            f"image features not by {backend.name}: {seen}, expected {LEAST_COSINE} on average; trying a more exact way"
        )
    return last


def image_features(
    model: DualEncoder, split: "Split", backend: FeatureBackend, *, hflip: bool, progress: bool = True
) -> np.ndarray:
    """float32 [n, 1 or 2, num_features], memory-mapped: of every picture and, with `hflip`, of its mirror image.

    The encoder must be frozen in evaluation mode. What is on disk already is used, also a part that an interrupted
    run left; the name holds a checksum of pictures, weights, input and arithmetic, so that nothing stale is ever read.
    """
    views = 2 if hflip else 1
    shape = (len(split), views, model.num_image_features)
    label = f"image features ({'each image and its mirror image' if views == 2 else 'each image'})"

    def encode(groups: list[range]) -> Iterator[np.ndarray]:
        backend.prepare()
        return _features(model, split, views, backend, groups)

    key = _key(model, split.checksum, views, backend.name)
    return kept_features(key, shape, backend.group(views), encode, label, " pictures", progress)


def kept_features(
    key: str,
    shape: tuple[int, ...],
    group: int,
    encode: Callable[[list[range]], Iterator[np.ndarray]],
    label: str,
    unit: str,
    progress: bool,
) -> np.ndarray:
    """float32 of `shape`, memory-mapped: the file of `key` in the cache, made or finished now if it isn't whole.

    encode: gives the values of each of some ranges of rows in turn. A partial file is appended to, `group` rows at a
    time, so that an interruption changes none; the finished one is renamed.
    """
    path = _cached(key, ".npy")
    with full_disk_is_an_error(path), locked(path.with_suffix(".lock")):
        if path.exists() and path.stat().st_size != _size(shape):
            path.unlink()  # cut short by a disk or a copy; reading the end of it would kill the process
        if not path.exists():
            _append_groups(path, shape, group, encode, label, unit, progress)
    features: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return features


def _exactness(backend: FeatureBackend, model: DualEncoder, split: "Split") -> Exactness:
    """As it was measured before with these weights, or now."""
    path = _cached(_key(model, "exactness", 1, backend.name), ".json")
    with full_disk_is_an_error(path), locked(path.with_suffix(".lock")):
        if not path.exists():
            backend.prepare()
            write_text(path, json.dumps(asdict(measure_exactness(backend, model, split))))
    return Exactness(**json.loads(path.read_text()))


def _cached(key: str, suffix: str) -> Path:
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{key}{suffix}"


def _key(model: DualEncoder, what: str, views: int, arithmetic: str) -> str:
    key = hashlib.sha256(f"{what} {views} {arithmetic}".encode())
    # Encoders of another name can share names and values of weights: the padding of a convolution is not among them.
    image = model.config.image
    key.update(f"{image.name} {image.pooled_stages} {asdict(model.image_input)}".encode())
    return weights_checksum(key, model.image_encoder)


def weights_checksum(key: "hashlib._Hash", encoder: nn.Module) -> str:
    """What names a file of features: a checksum of all that `key` has seen and of an encoder's weights."""
    for name, value in encoder.state_dict().items():
        key.update(name.encode())
        key.update(value.detach().cpu().contiguous().numpy().tobytes())
    return key.hexdigest()[:32]


def _append_groups(
    path: Path,
    shape: tuple[int, ...],
    size: int,
    encode: Callable[[list[range]], Iterator[np.ndarray]],
    label: str,
    unit: str,
    progress: bool,
) -> None:
    """Append group after group to a partial .npy file, from where it was left, then give it its name."""
    partial = path.with_suffix(".partial")
    header, rows = _npy_header(shape), shape[0]
    group_bytes = size * math.prod(shape[1:]) * 4
    with partial.open("ab") as file:
        groups_done = max(0, file.tell() - len(header)) // group_bytes
        done = groups_done * size  # whole groups only
        file.truncate(len(header) + groups_done * group_bytes if done else 0)
        if not done:
            file.write(header)
        groups = [range(start, min(start + size, rows)) for start in range(done, rows, size)]
        with progress_bar(total=rows, initial=done, desc=label, unit=unit, disable=not progress) as bar:
            for features in encode(groups):
                file.write(features.tobytes())
                file.flush()
                bar.update(len(features))
        os.fsync(file.fileno())
    partial.replace(path)


def _features(
    model: DualEncoder, split: "Split", views: int, backend: FeatureBackend, groups: list[range]
) -> Iterator[np.ndarray]:
    """Of each group in turn, the next ones being decoded (and encoded, where the runtime allows) meanwhile."""

    def load(rows: range) -> torch.Tensor:
        return load_resized(model, split, rows)

    if backend.in_threads:
        yield from work_ahead(lambda rows: backend.encode(load(rows), views), groups, torch.get_num_threads() + 1)
    else:
        for images in work_ahead(load, groups, min(8, os.cpu_count() or 1)):
            yield backend.encode(images, views)


def _size(shape: tuple[int, ...]) -> int:
    """Bytes of a .npy file of float32 values."""
    return len(_npy_header(shape)) + 4 * math.prod(shape)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """What stands before the float32 values of an array in a .npy file."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()
