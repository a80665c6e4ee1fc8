"""Features of a stage's frozen encoders, computed once where no step of the stage changes them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from crosspair.data.batching import Split, TrainingSplit
from crosspair.encode.backends import choose_backend
from crosspair.encode.features import caption_features, image_features, kept_agreement
from crosspair.encode.model import DualEncoder
from crosspair.models.text import BiLSTMEncoder
from crosspair.training.recipe import Recipe, StageConfig


@dataclass(frozen=True)
class StageFeatures:
    """Memory-mapped features of both splits; None where every step computes them.

    Of images float32 [n, 1 or 2, num_features] (the second of the flipped image), of captions float32
    [m, num_features].
    """

    train_images: np.ndarray | None
    val_images: np.ndarray | None
    train_captions: np.ndarray | None
    val_captions: np.ndarray | None


def stage_features(
    model: DualEncoder,
    recipe: Recipe,
    stage: StageConfig,
    train: TrainingSplit,
    val: Split,
    *,
    autocast: Callable[[], AbstractContextManager[object]],
    tell: Callable[[str], object],
    progress: bool,
) -> StageFeatures:
    """Make the features of a stage, or read those that are on disk.

    A stream's training images and captions have none: it is read in its own order, and is too large to keep.
    autocast: entered around the encoders. tell: is given the lines that say how images are encoded.
    """
    kept = train.by_index
    train_images = val_images = train_captions = val_captions = None
    if _images_stay(stage):
        setting, precision = recipe.feature_backend, recipe.precision
        measure = kept_agreement(model, val)
        backend = choose_backend(model, setting, measure, precision=precision, autocast=autocast, tell=tell)
        if kept is not None:
            train_images = image_features(model, kept, backend, hflip=recipe.hflip, progress=progress)
        val_images = image_features(model, val, backend, hflip=False, progress=progress)
    if kept is not None and _captions_stay(model, stage):
        train_captions, val_captions = (
            caption_features(model, split, precision=recipe.precision, autocast=autocast, progress=progress)
            for split in (kept, val)
        )
    return StageFeatures(train_images, val_images, train_captions, val_captions)


def _images_stay(stage: StageConfig) -> bool:
    return stage.freeze_image_encoder and stage.bn_stats_frozen and stage.smallest_crop >= 1


def _captions_stay(model: DualEncoder, stage: StageConfig) -> bool:
    depends_on_batch = isinstance(model.text_encoder, BiLSTMEncoder) and model.config.text.pool_padding
    return stage.freeze_text_encoder and not depends_on_batch
