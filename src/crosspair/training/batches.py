"""What a stage trains on: where its batches come from, prepared data or a stream, and which ones an epoch has."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from crosspair.data.batching import BatchPlan, BatchSource, plan_epoch
from crosspair.data.decoded import decoded_images
from crosspair.data.streams.batches import StreamPlans, StreamSource, plan_stream
from crosspair.data.streams.stream import StreamSplit
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.training.recipe import Recipe, StageConfig

if TYPE_CHECKING:
    from crosspair.data.dataset import Split


def batch_source(
    split: "Split | StreamSplit",
    model: DualEncoder,
    recipe: Recipe,
    stage: StageConfig,
    features: np.ndarray | None,
    progress: bool,
    text_features: np.ndarray | None = None,
) -> BatchSource:
    """Makes a stage's batches.

    features [n, 1 or 2, num_features]: of a frozen image encoder, in place of pictures. text_features [all captions,
    num_features]: of a frozen text encoder.
    """
    tokenize, image_input, crop, sides = model.tokenize, model.image_input, stage.smallest_crop, recipe.hflip_sides
    if isinstance(split, StreamSplit):
        return StreamSource(split, tokenize, image_input, smallest_crop=crop, hflip_sides=sides)
    decoded = None
    if features is None:
        budget = recipe.decoded_cache_gb
        decoded = decoded_images(split, image_input, resized=crop == 1, budget_gb=budget, progress=progress)
    kept = {"features": features, "text_features": text_features}
    return BatchSource(split, tokenize, image_input, **kept, smallest_crop=crop, hflip_sides=sides, decoded=decoded)


def epoch_plan(
    source: BatchSource, recipe: Recipe, stage: StageConfig, number: int, epoch: int, processes: int
) -> Sequence[BatchPlan]:
    """The batches of an epoch (from 0) of stage `number`; each is shared by the processes."""
    seed = (recipe.seed, number, epoch)
    if isinstance(source, StreamSource):
        if stage.sampler != "shuffled":
            raise UserError(
                f"stage{number}.sampler is {stage.sampler}, which needs prepared data; train on a DATA directory or "
                f"set stage{number}.sampler to shuffled"
            )
        return plan_stream(
            source.stream,
            batch_size=stage.batch_size,
            captions_per_image=stage.captions_per_image,
            covers=stage.epoch_covers,
            hflip=recipe.hflip,
            seed=seed,
            shuffle_buffer=recipe.stream.shuffle_buffer,
            processes=processes,
        )
    return plan_epoch(
        source.caption_counts,
        batch_size=stage.batch_size,
        captions_per_image=stage.captions_per_image,
        covers=stage.epoch_covers,
        hflip=recipe.hflip,
        seed=seed,
        identities=source.labels if stage.sampler == "identities" else None,
        images_per_label=stage.images_per_label,
    )


def share(plans: Sequence[BatchPlan], rank: int, processes: int) -> Sequence[BatchPlan]:
    """What one of the processes takes of each batch."""
    if isinstance(plans, StreamPlans):
        return plans.shard(rank, processes)
    return [plan.shard(rank, processes) for plan in plans]
