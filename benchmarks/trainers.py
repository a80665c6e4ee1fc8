"""What the benchmarks of training share: made-up images with captions, and a training step ready to run."""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from crosspair.data.batching import Batch, load_batches
from crosspair.data.dataset import Data, PreparedSplit, open_data
from crosspair.data.images import encode_jpeg
from crosspair.data.prepare import prepare
from crosspair.data.records import Record
from crosspair.encode.model import DualEncoder, create_model
from crosspair.training.distributed import launch
from crosspair.training.layers import freeze_for_stage
from crosspair.training.losses import MatchingLosses
from crosspair.training.machine import keep_memory, settled
from crosspair.training.optimizer import StageOptimizer
from crosspair.training.recipe import Recipe, StageConfig
from crosspair.training.step import TrainingStep
from crosspair.training.trainer import batch_source, epoch_plan


@contextmanager
def opened(options: argparse.Namespace, images: int) -> Iterator[Data]:
    """The data that --data names, or as many made-up images of 256 x 342 with five captions of some eleven words."""
    if options.data is not None:
        yield open_data(options.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        prepare(_records(images), path, source={}, size=256, progress=False)
        yield open_data(path)


def _records(images: int) -> Iterator[Record]:
    random = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(3000)])
    for number in range(images):
        coarse = torch.from_numpy(random.integers(0, 256, (1, 3, 24, 32), dtype=np.uint8)).float()
        smooth = torch.nn.functional.interpolate(coarse, (256, 342), mode="bicubic").clamp(0, 255).byte()[0]
        lengths = random.normal(10.8, 3.5, 5).round().clip(3, 24).astype(int)
        captions = tuple(" ".join(words[(random.zipf(1.3, length) - 1) % len(words)]) for length in lengths)
        split = "val" if number % 8 == 7 else "train"
        yield Record(str(number), encode_jpeg(smooth, 90), number, captions, split)


@dataclass
class Trainer:
    """A model with its training step on a stage of a recipe, and the batches of that stage, epoch after epoch."""

    recipe: Recipe
    stage: StageConfig
    model: DualEncoder
    step: TrainingStep
    batches: Iterator[Batch]
    steps_per_epoch: int
    done: int = 0

    def advance(self) -> Batch:
        """Load a batch and train on it."""
        batch = next(self.batches)
        self.step(batch, self.done)
        self.done += 1
        return batch


def trainer(
    recipe: Recipe,
    split: PreparedSplit,
    number: int,
    features: np.ndarray | None = None,
    model: DualEncoder | None = None,
    *,
    keeps_memory: bool = False,
) -> Trainer:
    """For stage `number` of the recipe, from random heads of the recipe's seed or from a model's weights.

    keeps_memory: as `crosspair train` has it on a CPU, from here on and until the process ends. It makes both sides of
    a comparison faster, so most are made without.
    """
    if keeps_memory:
        keep_memory()
    recipe = settled(replace(recipe, device="cpu"))
    stage = recipe.stage1 if number == 1 else recipe.stage2
    torch.manual_seed(recipe.seed)
    if model is None:
        model = create_model(recipe.model, (caption for row in split.captions for caption in row))
    freeze_for_stage(model, stage)
    projection = recipe.model.projection
    losses = MatchingLosses(recipe.loss, len(np.unique(split.labels)), projection.dim, projection.heads)
    source = batch_source(split, model, recipe, stage, features, progress=False)
    per_epoch = len(epoch_plan(source, recipe, stage, number, 0, 1))
    processes = launch(recipe)
    optimizer = StageOptimizer(model, losses, recipe.optimizer, stage, per_epoch * max(1, stage.epochs))
    wrapped = processes.fabric.setup_module(model).train()
    step = TrainingStep(processes, wrapped, losses, optimizer, None, grad_clip_norm=recipe.optimizer.grad_clip_norm)

    def batches() -> Iterator[Batch]:
        for epoch in itertools.count():
            plans = list(epoch_plan(source, recipe, stage, number, epoch, 1))
            yield from load_batches(source, plans, 0, torch.device("cpu"))

    return Trainer(recipe, stage, model, step, batches(), per_epoch)
