"""Features of a frozen text encoder: each caption goes through it once; they are kept on disk beside the pictures'."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from crosspair.data.tokens import pad
from crosspair.models.dual_encoder import DualEncoder
from crosspair.training.features import kept_features, weights_checksum

if TYPE_CHECKING:
    from crosspair.data.dataset import Split

GROUP = 256  # captions at a time


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
    is used, also a part that an interrupted run left; the name holds a checksum of captions, weights and arithmetic.
    precision, autocast: a recipe's, entered around the encoder.
    """
    tokens = [model.tokenize(caption) for row in split.captions for caption in row]
    # Encoders of another pooling can share names and values of weights.
    key = hashlib.sha256(f"captions {precision} {model.config.text}".encode())
    key.update(json.dumps(tokens).encode())
    shape = (len(tokens), model.text_encoder.num_features)

    @torch.no_grad()
    def encode(groups: list[range]) -> Iterator[np.ndarray]:
        for rows in groups:
            batch, lengths = pad([tokens[row] for row in rows])
            with autocast():
                features = model.text_encoder(batch.to(model.device), lengths)
            yield features.float().cpu().numpy()

    name = weights_checksum(key, model.text_encoder)
    return kept_features(name, shape, GROUP, encode, "caption features", " captions", progress)
