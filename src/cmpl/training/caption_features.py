"""Features of a frozen text encoder: each caption goes through it once; they are kept on disk beside the pictures'."""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from cmpl.cache import locked
from cmpl.data.text import pad
from cmpl.files import full_disk_is_an_error, whole_file
from cmpl.models.dual_encoder import DualEncoder
from cmpl.progress import progress_bar
from cmpl.training.features import cache_directory

if TYPE_CHECKING:
    from cmpl.data.dataset import Split

_BATCH = 256  # captions at a time


def caption_features(
    model: DualEncoder,
    split: "Split",
    *,
    precision: str = "32-true",
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: bool = True,
) -> np.ndarray:
    """float32 [m, num_features], memory-mapped: of every caption, in the order of their pictures.

    The text encoder must be frozen, and a caption's features must not depend on its neighbours. What is on disk already
    is used; the name holds a checksum of captions, weights and arithmetic. precision, autocast: a recipe's, entered
    around the encoder.
    """
    tokens = [model.tokenize(caption) for row in split.captions for caption in row]
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{_key(model, tokens, precision)}.npy"
    with full_disk_is_an_error(path), locked(path.with_suffix(".lock")):
        if not path.exists():
            features = _encode(model, tokens, autocast, progress)
            with whole_file(path) as file:
                np.save(file, features)
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _key(model: DualEncoder, tokens: list[list[int]], precision: str) -> str:
    key = hashlib.sha256(f"captions {precision} {model.config.text}".encode())
    key.update(json.dumps(tokens).encode())
    for name, value in model.text_encoder.state_dict().items():
        key.update(name.encode())
        key.update(value.detach().cpu().contiguous().numpy().tobytes())
    return key.hexdigest()[:32]


@torch.no_grad()
def _encode(
    model: DualEncoder,
    tokens: list[list[int]],
    autocast: Callable[[], AbstractContextManager[object]],
    progress: bool,
) -> np.ndarray:
    rows = np.empty((len(tokens), model.text_encoder.num_features), dtype=np.float32)
    with (
        autocast(),
        progress_bar(total=len(tokens), desc="caption features", unit=" captions", disable=not progress) as bar,
    ):
        for start in range(0, len(tokens), _BATCH):
            batch, lengths = pad(tokens[start : start + _BATCH])
            rows[start : start + len(batch)] = model.text_encoder(batch.to(model.device), lengths).float().cpu().numpy()
            bar.update(len(batch))
    return rows
