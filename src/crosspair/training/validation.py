"""Validation on the split val, of the raw weights and of their EMA."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspair.encode.model import DualEncoder
from crosspair.encode.split import embed_split
from crosspair.evaluation.metrics import evaluate_retrieval
from crosspair.training.ema import WeightEMA

if TYPE_CHECKING:
    from crosspair.data.batching import Split


def validation_rows(
    model: DualEncoder,
    split: "Split",
    features: np.ndarray | None,
    ema: WeightEMA | None,
    autocast: Callable[[], AbstractContextManager[object]],
    text_features: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Recall, mAP and ranks of raw weights and, if given, of their EMA, as metrics.jsonl has them.

    features, text_features: of the split's images and captions, if at hand. autocast: entered around the encoders.
    """
    rows = []
    for weights in ("raw", "ema") if ema is not None else ("raw",):
        with weights_held(ema, weights), autocast():
            seen = embed_split(model, split, features=features, text_features=text_features)
        result = evaluate_retrieval(seen.images, seen.texts, seen.image_labels, seen.text_labels)
        rows.append({"weights": weights, **result.to_dict()})
    return rows


def weights_held(ema: WeightEMA | None, weights: str) -> AbstractContextManager[None]:
    """A context in which the model holds its `raw` weights, or the `ema` of them."""
    return ema.applied() if ema is not None and weights == "ema" else nullcontext()


def in_a_line(row: dict[str, Any], best: float) -> str:
    """A validation row and the best rsum so far as one line for the screen."""
    recall = f"R@1 {row['image_to_text']['R@1']:.1f} image to text, {row['text_to_image']['R@1']:.1f} text to image"
    return f"val {recall}, rsum {row['rsum']:.1f} (best {best:.1f})"
