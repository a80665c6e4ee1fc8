"""Features of frozen encoders: each image (also flipped, by `hflip`) and caption is encoded once and kept on disk."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from crosspair.data.images import load_image
from crosspair.data.tokens import pad
from crosspair.encode.backends import SAMPLE, Agreement, Backend, agreement_on
from crosspair.encode.model import DualEncoder
from crosspair.encode.reader import grouped, read_ahead
from crosspair.encode.store import VectorStore, npy_header
from crosspair.progress import progress_bar
from crosspair.storage.cache import locked, user_cache
from crosspair.storage.files import full_disk_is_an_error, write_text

if TYPE_CHECKING:
    from crosspair.data.batching import Split

T = TypeVar("T")

CAPTIONS = 256  # encoded at a time
READ_AT_ONCE = 8  # images by a thread: fewer would have the threads wait for each other


def cache_directory() -> Path:
    """The directory where features are kept between runs."""
    return user_cache("features")


def encode_in_groups(
    items: Iterable[T], pixels: Callable[[T], Tensor], backend: Backend, views: int = 1, threads: int | None = None
) -> Iterator[tuple[list[T], np.ndarray]]:
    """Groups of items with their images' features float32 [group, views, num_features], in order.

    pixels: of an item, resized. threads: that encode at once where the backend allows it, by default one a core.
    """

    def encode(group: list[T]) -> tuple[list[T], np.ndarray]:
        return group, backend.image_features(torch.stack([pixels(item) for item in group]), views)

    groups = grouped(items, backend.group(views))
    if backend.in_threads:
        return read_ahead(encode, groups, threads or torch.get_num_threads())
    return map(encode, groups)


def image_features(
    model: DualEncoder, split: "Split", backend: Backend, *, hflip: bool, progress: bool = True
) -> np.ndarray:
    """float32 [n, 1 or 2, num_features], memory-mapped: of every image and, with `hflip`, of it flipped.

    The encoder must be frozen in evaluation mode. What is on disk already is used, also a part that an interrupted
    run left; the name holds a checksum of images, weights, input and arithmetic, so that nothing stale is ever read.
    """
    views = 2 if hflip else 1
    shape = (len(split), views, model.num_image_features)
    label = f"image features ({'each image, and it flipped' if views == 2 else 'each image'})"

    def encode(done: int) -> Iterator[np.ndarray]:
        backend.prepare()
        rows = range(done, len(split))
        if backend.in_threads:
            images = _resized(model, split, rows)
            return (features for _, features in encode_in_groups(images, lambda image: image, backend, views))
        # Stacked by the thread that reads them: a quarter of the time of stacking them where PyTorch computes.
        stacked = read_ahead(
            lambda some: torch.stack([_load(model, split, row) for row in some]), grouped(rows, backend.group(views))
        )
        return (backend.image_features(images, views) for images in stacked)

    key = _key(model, split.checksum, views, backend.name)
    return _kept(key, shape, backend.group(views), encode, label, " images", progress)


def caption_features(
    model: DualEncoder,
    split: "Split",
    *,
    precision: str = "32-true",
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: bool = True,
) -> np.ndarray:
    """float32 [m, num_features], memory-mapped: of every caption, in the order of their images.

    The text encoder must be frozen, and a caption's features must not depend on its neighbours. What is on disk already
    is used, also a part that an interrupted run left; the name holds a checksum of captions, weights and arithmetic.
    precision, autocast: a recipe's, entered around the encoder.
    """
    tokens = [model.tokenize(caption) for row in split.texts(model.config.text.tokenizer) for caption in row]
    # Encoders of another pooling can share names and values of weights.
    key = hashlib.sha256(f"captions {precision} {model.config.text}".encode())
    key.update(json.dumps(tokens).encode())
    shape = (len(tokens), model.num_text_features)

    @torch.no_grad()
    def encode(done: int) -> Iterator[np.ndarray]:
        for group in grouped(tokens[done:], CAPTIONS):
            batch, lengths = pad(group)
            with autocast():
                features = model.text_encoder(batch.to(model.device), lengths)
            yield features.float().cpu().numpy()

    name = _weights_checksum(key, model.text_encoder)
    return _kept(name, shape, CAPTIONS, encode, "caption features", " captions", progress)


def kept_agreement(model: DualEncoder, split: "Split") -> Callable[[Backend], Agreement]:
    """Measures backends on evenly spaced images of a split, once for an encoder's weights."""

    def measure(backend: Backend) -> Agreement:
        path = _cached(_key(model, "agreement", 1, backend.name), ".json")
        with full_disk_is_an_error(path), locked(path.with_suffix(".lock")):
            if not path.exists():
                backend.prepare()
                rows = np.unique(np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int))
                images = torch.stack(list(_resized(model, split, rows.tolist())))
                write_text(path, json.dumps(asdict(agreement_on(images, backend, model))))
        return Agreement(**json.loads(path.read_text()))

    return measure


def _load(model: DualEncoder, split: "Split", row: int) -> Tensor:
    """An image [3, height, width] as the encoder's input has it, not normalized."""
    return model.image_input.resize(load_image(split.image(row), split.image_ids[row]))


def _resized(model: DualEncoder, split: "Split", rows: Iterable[int]) -> Iterator[Tensor]:
    return read_ahead(lambda row: _load(model, split, row), rows, at_once=READ_AT_ONCE)


def _kept(
    key: str,
    shape: tuple[int, ...],
    group: int,
    encode: Callable[[int], Iterator[np.ndarray]],
    label: str,
    unit: str,
    progress: bool,
) -> np.ndarray:
    """float32 of `shape`, memory-mapped: the file of `key` in the cache, made or finished now if it isn't whole.

    encode: gives the values of the rows from one on, `group` rows at a time, so that an interruption changes none.
    """
    path = _cached(key, ".npy")
    with full_disk_is_an_error(path), locked(path.with_suffix(".lock")):
        if path.exists() and path.stat().st_size != len(npy_header(shape)) + 4 * math.prod(shape):
            path.unlink()  # cut short by a disk or a copy; reading the end of it would kill the process
        if not path.exists():
            _append(path, shape, group, encode, label, unit, progress)
    features: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return features


def _append(
    path: Path,
    shape: tuple[int, ...],
    group: int,
    encode: Callable[[int], Iterator[np.ndarray]],
    label: str,
    unit: str,
    progress: bool,
) -> None:
    store = VectorStore(path.with_suffix(".partial"), shape[1:], {"rows": shape[0], "group": group}, npy_header(shape))
    try:
        options = {"total": shape[0], "initial": store.count, "desc": label, "unit": unit, "disable": not progress}
        with progress_bar(**options) as bar:  # type: ignore[arg-type]
            for features in encode(store.count) if store.count < shape[0] else ():
                store.append(features)
                store.flush()
                bar.update(len(features))
        store.finish(path)
    finally:
        store.close()


def _cached(key: str, suffix: str) -> Path:
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{key}{suffix}"


def _key(model: DualEncoder, what: str, views: int, arithmetic: str) -> str:
    key = hashlib.sha256(f"{what} {views} {arithmetic}".encode())
    # Encoders of another name can share names and values of weights: the padding of a convolution is not among them.
    image = model.config.image
    key.update(f"{image.name} {image.pooled_stages} {asdict(model.image_input)}".encode())
    return _weights_checksum(key, model.image_encoder)


def _weights_checksum(key: "hashlib._Hash", encoder: nn.Module) -> str:
    """The name of a file of features: a checksum of all that `key` has seen and of an encoder's weights."""
    for name, value in encoder.state_dict().items():
        key.update(name.encode())
        key.update(value.detach().cpu().contiguous().numpy().tobytes())
    return key.hexdigest()[:32]
