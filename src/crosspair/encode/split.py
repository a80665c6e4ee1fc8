"""All embeddings of a split, for validation, evaluation and the report."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crosspair.encode.model import DualEncoder

if TYPE_CHECKING:
    from crosspair.data.batching import Split


@dataclass(frozen=True)
class SplitEmbeddings:
    """Unit-length embeddings of a split's n images and m captions, captions in the order of their images."""

    images: Tensor  # float32 [n, d]
    texts: Tensor  # float32 [m, d]
    image_labels: Tensor  # int64 [n]
    text_labels: Tensor  # int64 [m]
    captions: list[str]  # m


def embed_split(
    model: DualEncoder,
    split: "Split",
    *,
    features: np.ndarray | None = None,
    text_features: np.ndarray | None = None,
    progress: bool = False,
) -> SplitEmbeddings:
    """Encode a split's images and captions.

    features [n, 1 or 2, num_features]: of the images, text_features [m, num_features]: of the captions, if at hand.
    """
    if features is None:
        images = model.encode_image(_Images(split), progress=progress)
    else:
        images = _encode_features(model, features[:, 0], model.encode_image_features)
    captions = [caption for row in split.captions for caption in row]
    read = [text for row in split.texts(model.config.text.tokenizer) for text in row]
    counts = torch.tensor([len(row) for row in split.captions])
    labels = torch.from_numpy(np.array(split.labels, dtype=np.int64))
    if text_features is None:
        texts = model.encode_text(read, progress=progress)
    else:
        texts = _encode_features(model, text_features, model.encode_text_features)
    return SplitEmbeddings(images, texts, labels, labels.repeat_interleave(counts), captions)


class _Images:
    """A split's images as stored, read lazily; their number is known, so that progress can be shown."""

    def __init__(self, split: "Split") -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __iter__(self) -> Iterator[Any]:
        return (self.split.image(index) for index in range(len(self)))


def _encode_features(model: DualEncoder, features: np.ndarray, encode: Callable[[Tensor], Tensor]) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        return encode(torch.from_numpy(np.array(features)))
    finally:
        model.train(was_training)
