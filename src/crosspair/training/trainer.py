"""The state of a run in progress, and how it is built from a recipe and its data."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosspair.data.batching import BatchSource, Reading, Split, TrainingSplit
from crosspair.data.decoded import decoded_images
from crosspair.data.plans import BatchPlan, Drawing
from crosspair.data.splits import RunSplits
from crosspair.data.tokens import Vocabulary
from crosspair.encode.backends import choose_backend
from crosspair.encode.features import caption_features, image_features, kept_agreement
from crosspair.encode.model import DualEncoder, create_model
from crosspair.errors import UserError
from crosspair.models.text import BiLSTMEncoder
from crosspair.registry import SAMPLERS
from crosspair.settings import apply_settings
from crosspair.training.callbacks import Callback, Progress
from crosspair.training.checkpoints import Checkpoint
from crosspair.training.distributed import Processes, synchronise_batch_norm
from crosspair.training.ema import WeightEMA
from crosspair.training.layers import add_recipe_adapters, freeze_for_stage
from crosspair.training.log import RunLog
from crosspair.training.losses import MatchingLosses
from crosspair.training.named_weights import freeze_matching, restore_weights
from crosspair.training.optimizer import StageOptimizer
from crosspair.training.recipe import Recipe, StageConfig, name_and_settings
from crosspair.training.step import TrainingStep


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


@dataclass
class Trainer:
    """A run in progress: what stays the same through all stages, and where it is."""

    recipe: Recipe
    run: Path
    processes: Processes
    train: TrainingSplit
    val: Split | None  # None where nothing is validated
    model: DualEncoder
    losses: MatchingLosses
    callbacks: Sequence[Callback] = ()
    show: bool = True  # progress bars and lines on the screen
    progress: Progress = field(default_factory=Progress)
    log: RunLog | None = None  # of the first process
    frozen: list[Tensor] = field(default_factory=list)  # by patterns of the stage under way
    last_saved: float = field(default_factory=time.monotonic)  # when the newest checkpoint was written

    def tell(self, event: str, *arguments: Any) -> None:
        """Call the callbacks' method `event` in the first process; where one fails, all stop."""
        if self.callbacks:
            self.processes.once(lambda: [getattr(each, event)(self.progress, *arguments) for each in self.callbacks])

    def write(self, row: dict[str, Any]) -> None:
        """A row for metrics.jsonl, from the first process."""
        self.processes.once(lambda: self.log.write(row) if self.log is not None else None)


@dataclass
class Stage:
    """The stage under way, and what is made anew for each."""

    number: int
    config: StageConfig
    features: StageFeatures
    source: BatchSource
    step: TrainingStep
    batches: int  # in an epoch
    workers: int  # processes that decode images
    bar: Any = None


def build_trainer(
    recipe: Recipe,
    splits: RunSplits,
    run: Path,
    processes: Processes,
    *,
    callbacks: Sequence[Callback] = (),
    show: bool = True,
    with_weights: bool = True,
) -> Trainer:
    """The model and the losses at their start.

    with_weights: False where a checkpoint brings the starting weights. Raises UserError for what can't be had.
    """
    train = splits.train
    for number, stage in recipe.stages:
        processes.check_batch(min(stage.batch_size, len(train)), f"stage{number}")
        sampler, _ = name_and_settings(stage.sampler)
        if sampler != "shuffled" and train.by_index is None:
            raise UserError(
                f"stage{number}.sampler is {sampler}, which needs prepared data; train on a DATA directory or "
                f"set stage{number}.sampler to shuffled"
            )
    torch.manual_seed(recipe.seed)
    wanted = recipe.model
    if not with_weights:
        bare = replace(wanted.image, weights="none"), replace(wanted.text, word_vectors=None)
        wanted = replace(wanted, image=bare[0], text=bare[1])
    words = train.word_counts(wanted.text.tokenizer)
    tell = print if show and processes.first else None
    model = create_model(wanted, words, tell).to(processes.fabric.device)
    if recipe.model.text.tokenizer != "words" and not isinstance(model.vocabulary, Vocabulary):
        raise UserError(
            f"model.text.tokenizer is {recipe.model.text.tokenizer}, and {recipe.model.text.name} has its own; set it "
            "to words"
        )
    model.config = recipe.model
    if with_weights:
        restore_weights(model, recipe.restore, tell or (lambda line: None))
    add_recipe_adapters(model, recipe.lora)
    projection = recipe.model.projection
    losses = MatchingLosses(recipe.loss, len(np.unique(train.labels)), projection.dim, projection.heads)
    losses = losses.to(processes.fabric.device)
    for number, stage in recipe.stages:  # tried before anything is written
        for value in _freeze(model, losses, number, stage):
            value.requires_grad_(True)
    if recipe.precision == "64-true":
        model.double()
        losses.double()
    if recipe.sync_batch_norm and processes.size > 1:
        synchronise_batch_norm(model)
    model.use_channels_last(recipe.channels_last)
    if recipe.compile:
        model.image_encoder.compile()  # in place: names in checkpoints stay
    processes.seed(recipe.seed)
    return Trainer(recipe, run, processes, train, splits.val, model, losses, callbacks, show)


def build_stage(trainer: Trainer, number: int, config: StageConfig, checkpoint: Checkpoint | None = None) -> Stage:
    """Freeze what the stage freezes, make its features and its optimizer, which a checkpoint may have left."""
    recipe, processes, model = trainer.recipe, trainer.processes, trainer.model
    for value in trainer.frozen:
        value.requires_grad_(True)
    trainer.frozen = _freeze(model, trainer.losses, number, config)
    # Anew for each stage, as other weights train. The losses are computed outside, in the weights' own precision.
    wrapped = processes.fabric.setup_module(model)
    features = _features(trainer, config)
    kept = (features.train_images, features.train_captions)
    source = batch_source(trainer.train, model, recipe, config, *kept, progress=trainer.show)
    batches = len(epoch_plan(source, recipe, config, number, 0, processes.size))
    ema = None
    if recipe.ema.decay > 0:
        ema = WeightEMA(model, recipe.ema.decay, ("text_encoder.",) if recipe.ema.parts == "image" else ())
    optimizer = StageOptimizer(model, trainer.losses, recipe.optimizer, config, batches * config.epochs)
    settings = (recipe.ema.before_update, recipe.optimizer.grad_clip_norm, config.mini_batch_size)
    step = TrainingStep(processes, wrapped, trainer.losses, optimizer, ema, *settings)
    if checkpoint is not None and "optimizer" in checkpoint.tensors:
        optimizer.load(checkpoint.tensors["optimizer"])
        if ema is not None:
            ema.load(checkpoint.tensors["ema"])
    return Stage(number, config, features, source, step, batches, _workers(recipe, processes.fabric.device))


def _freeze(model: DualEncoder, losses: MatchingLosses, number: int, stage: StageConfig) -> list[Tensor]:
    """Freeze what stage `number` freezes; the weights that would train but for its patterns."""
    freeze_for_stage(model, stage)
    return freeze_matching(model, losses, stage.freeze, f"stage{number}.freeze")


def batch_source(
    split: TrainingSplit,
    model: DualEncoder,
    recipe: Recipe,
    stage: StageConfig,
    images: np.ndarray | None = None,
    captions: np.ndarray | None = None,
    *,
    progress: bool = False,
) -> BatchSource:
    """Makes a stage's batches. images, captions: their features, where an encoder is frozen (see `Reading`)."""
    decoded = None
    if images is None and split.by_index is not None:
        budget, whole = recipe.decoded_cache_gb, stage.smallest_crop == 1
        decoded = decoded_images(split.by_index, model.image_input, resized=whole, budget_gb=budget, progress=progress)
    reading = Reading(
        model.tokenize,
        model.image_input,
        features=images,
        text_features=captions,
        smallest_crop=stage.smallest_crop,
        hflip_sides=recipe.hflip_sides,
        shift=stage.shift,
        erasing=stage.erasing,
        decoded=decoded,
        tokenizer=recipe.model.text.tokenizer,
    )
    return split.batch_source(reading)


def epoch_plan(
    source: BatchSource, recipe: Recipe, stage: StageConfig, number: int, epoch: int, processes: int
) -> Sequence[BatchPlan]:
    """The batches of an epoch (from 0) of stage `number`; each is shared by the processes."""
    sampler, settings = name_and_settings(stage.sampler)
    drawing = Drawing(
        batch_size=stage.batch_size,
        captions_per_image=stage.captions_per_image,
        covers=stage.epoch_covers,
        hflip=recipe.hflip,
        sampler=apply_settings(SAMPLERS.get(sampler), settings),
        shuffle_buffer=recipe.stream.shuffle_buffer,
        processes=processes,
    )
    return source.plan(drawing, (recipe.seed, number, epoch))


def _features(trainer: Trainer, stage: StageConfig) -> StageFeatures:
    """Make the features of a stage, or read those that are on disk.

    A stream's training images and captions have none: it is read in its own order, and is too large to keep.
    """
    tell: Callable[[str], object] = print if trainer.show and trainer.processes.first else lambda line: None
    model, recipe, val, kept = trainer.model, trainer.recipe, trainer.val, trainer.train.by_index
    precision, autocast, progress = recipe.precision, trainer.processes.fabric.autocast, trainer.show
    train_images = val_images = train_captions = val_captions = None
    seen = val if val is not None else kept
    if _images_stay(stage) and seen is not None:
        measure = kept_agreement(model, seen)
        backend = choose_backend(
            model, recipe.feature_backend, measure, precision=precision, autocast=autocast, tell=tell
        )
        if kept is not None:
            train_images = image_features(model, kept, backend, hflip=recipe.hflip, progress=progress)
        if val is not None:
            val_images = image_features(model, val, backend, hflip=False, progress=progress)
    if kept is not None and _captions_stay(model, stage):
        train_captions, val_captions = (
            None
            if split is None
            else caption_features(model, split, precision=precision, autocast=autocast, progress=progress)
            for split in (kept, val)
        )
    return StageFeatures(train_images, val_images, train_captions, val_captions)


def _images_stay(stage: StageConfig) -> bool:
    changed = stage.smallest_crop < 1 or stage.shift > 0 or stage.erasing > 0
    return stage.freeze_image_encoder and stage.bn_stats_frozen and not changed


def _captions_stay(model: DualEncoder, stage: StageConfig) -> bool:
    depends_on_batch = isinstance(model.text_encoder, BiLSTMEncoder) and model.config.text.pool_padding
    return stage.freeze_text_encoder and not depends_on_batch


def _workers(recipe: Recipe, device: torch.device) -> int:
    if recipe.workers >= 0:
        return recipe.workers
    return 0 if device.type == "cpu" else max(1, (os.cpu_count() or 1) // recipe.devices)
