"""What a training step costs: images shared by captions, and the loop around the step. One run, alternating.

    python benchmarks/step.py [--data flickr8k] [--rounds 5]
    python benchmarks/step.py --data flickr8k --equal-time 30 [--model RUN/model]

Sharing: pairs per second of steps that train MobileNet-v1 too, 16 images with 5 captions each against 80 images
with one caption each, loading included.
Overhead: what `crosspair train` takes for a step (batch, losses, gradients, clipping, update, weight averages, log)
against the bare forward, backward and optimizer step of a copy of the model on the same batch in memory, with the image
encoder trained and on kept features. Every step is run both ways, in turns.
--equal-time MINUTES: instead, train EfficientNet-Lite0 (ImageNet weights; or a model's directory) both ways for so
many minutes each, in slices of half a minute, from the same start at the same rates, and print recall on val.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from crosspair.data.batching import Batch
from crosspair.data.dataset import Data
from crosspair.encode.model import DualEncoder
from crosspair.encode.split import embed_split
from crosspair.evaluation.metrics import evaluate_retrieval
from crosspair.training.loop import train
from crosspair.training.optimizer import StageOptimizer
from crosspair.training.recipe import Recipe
from crosspair.training.recipe_files import load_recipe
from crosspair.training.step import TrainingStep
from trainers import Trainer, opened, trainer

WAYS = {"16 pictures x 5 captions": (16, 5), "80 pictures x 1 caption": (80, 1)}
SLICE = 30.0  # seconds


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def mobilenet(*settings: str) -> Recipe:
    overrides = ["--model.image.name", "slim_mobilenet_v1", "--model.image.weights", "none", "--device", "cpu"]
    return load_recipe("flickr30k-mobilenet-cmpm-cmpc", [*overrides, *settings])


def compare_sharing(data: Data, rounds: int) -> None:
    trainers: dict[str, Trainer] = {}
    for name, (images, captions) in WAYS.items():
        batch = ["--stage2.batch_size", str(images), "--stage2.captions_per_image", str(captions)]
        trainers[name] = trainer(mobilenet(*batch), data.split("train"), 2)
        trainers[name].advance()
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(rounds):
        for name in list(trainers) if number % 2 == 0 else reversed(list(trainers)):
            times[name].append(seconds(trainers[name].advance))
    shared, pairwise = times.values()
    ratios = [slow / fast for fast, slow in zip(shared, pairwise, strict=True)]
    precision = next(iter(trainers.values())).recipe.precision
    for name, taken in times.items():
        print(f"  {name}: {80 / statistics.median(taken):.1f} pairs/s ({statistics.median(taken):.2f} s a step)")
    print(
        f"sharing pictures, slim_mobilenet_v1, {precision}: {statistics.median(ratios):.2f} times the pairs per second "
        f"({min(ratios):.2f} to {max(ratios):.2f}, wanted at least 2.5)"
    )


class EnoughError(Exception):
    """To stop `train`: as many steps as wanted have been measured."""


class Overhead:
    """Takes the place of TrainingStep.__call__ inside `train`: runs the step, and the bare one before or after it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.full: list[float] = []  # a step with all that the loop does until the next one
        self.bare: list[float] = []
        self.left: float | None = None
        self._step = TrainingStep.__call__
        self._copy: tuple[DualEncoder, Any, torch.optim.Optimizer] | None = None

    def __call__(self, training: TrainingStep, batch: Batch, number: int, **options: Any) -> Any:
        entered = time.perf_counter()
        if self.left is not None:
            self.full[-1] += entered - self.left
        if len(self.full) == self.steps:
            raise EnoughError
        if self._copy is None:
            self._copy = self._prepare(training)
        seen: list[Any] = []
        turns = [
            lambda: self.bare.append(seconds(lambda: self._bare(training, batch))),
            lambda: self.full.append(seconds(lambda: seen.append(self._step(training, batch, number, **options)))),
        ]
        for turn in turns if number % 2 else reversed(turns):
            turn()
        self.left = time.perf_counter()
        return seen[0]

    def _prepare(self, training: TrainingStep) -> tuple[DualEncoder, Any, torch.optim.Optimizer]:
        model, losses = copy.deepcopy(training.model.module), copy.deepcopy(training.losses)
        scheduled = training.optimizer
        optimizer = StageOptimizer(model, losses, scheduled.config, scheduled.stage, scheduled.steps)
        return model, losses, optimizer.inner

    def _bare(self, training: TrainingStep, batch: Batch) -> None:
        assert self._copy is not None
        model, losses, optimizer = self._copy
        with training.processes.fabric.autocast():
            images, texts = model(batch.tokens, batch.lengths, images=batch.images, features=batch.features)
        total, _ = losses(images.float(), texts.float(), batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def measure_overhead(data: Data, what: str, recipe: Recipe, steps: int) -> None:
    """Run `train` for a number of steps; the first three, and those that validation follows, are left out."""
    stage = recipe.stages[0][1]
    epoch = len(data.split("train")) // stage.batch_size  # steps, as an image is drawn once with all its captions
    counted = [number for number in range(3, 2 * steps + 3) if (number + 1) % epoch][:steps]
    watch = Overhead(counted[-1] + 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(TrainingStep, "__call__", lambda *given, **options: watch(*given, **options)),
        suppress(EnoughError),
    ):
        train(recipe, data, Path(folder) / "run", progress=False)
    full, bare = ([times[number] for number in counted] for times in (watch.full, watch.bare))
    ratios = [one / other - 1 for one, other in zip(full, bare, strict=True)]
    print(
        f"overhead, {what}: {100 * (sum(full) / sum(bare) - 1):+.1f} % over {steps} steps, logged ones included "
        f"(median of a step {100 * statistics.median(ratios):+.1f} %, wanted at most 5 %); bare "
        f"{sum(bare) / len(bare):.2f} s a step"
    )


def compare_at_equal_time(data: Data, minutes: float, model: Path | None) -> None:
    trainers: dict[str, Trainer] = {}
    for name, (images, captions) in {
        "32 pictures x 5 captions": (32, 5),
        "160 pictures x 1 caption": (160, 1),
    }.items():
        batch = ["--stage2.batch_size", str(images), "--stage2.captions_per_image", str(captions)]
        recipe = load_recipe("flickr8k-lite0", [*batch, "--stage2.epoch_covers", "captions", "--device", "cpu"])
        recipe.stage2.schedule = "constant"  # its end would depend on the number of steps
        start = DualEncoder.from_pretrained(model) if model is not None else None
        trainers[name] = trainer(recipe, data.split("train"), 2, model=start)
    spent = dict.fromkeys(trainers, 0.0)
    pairs = dict.fromkeys(trainers, 0)
    for quarter in range(1, 5):
        while min(spent.values()) < 60 * minutes * quarter / 4:
            name = min(spent, key=lambda one: spent[one])
            end = min(spent[name] + SLICE, 60 * minutes * quarter / 4)
            while spent[name] < end:
                started = time.perf_counter()
                pairs[name] += len(trainers[name].advance().tokens)
                spent[name] += time.perf_counter() - started
        for name, one in trainers.items():
            print(f"{spent[name] / 60:5.1f} min, {name}: {pairs[name]:,} pairs, val {recall(one, data)}", flush=True)


def recall(one: Trainer, data: Data) -> str:
    with one.step.processes.fabric.autocast():
        seen = embed_split(one.model, data.split("val"))
    result = evaluate_retrieval(seen.images, seen.texts, seen.image_labels, seen.text_labels).to_dict()
    parts = []
    for direction in ("image_to_text", "text_to_image"):
        values = "/".join(f"{result[direction][name]:.1f}" for name in ("R@1", "R@5", "R@10"))
        parts.append(f"{direction.replace('_', ' ')} {values}")
    return f"R@1/5/10 {', '.join(parts)}, rsum {result['rsum']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="prepared data; without it pictures are made up")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way of sharing (default 5)")
    parser.add_argument("--steps", type=int, default=20, help="steps whose overhead is measured (default 20)")
    parser.add_argument("--equal-time", type=float, metavar="MINUTES", help="recall on val after equal time instead")
    parser.add_argument("--model", type=Path, help="directory of the model that --equal-time starts from")
    options = parser.parse_args()
    if options.equal_time and options.data is None:
        parser.error("--equal-time needs --data: recall on made-up pictures tells nothing")
    with opened(options, 1024) as data, tempfile.TemporaryDirectory() as cache:
        if options.equal_time:
            compare_at_equal_time(data, options.equal_time, options.model)
            return
        os.environ["CROSSPAIR_CACHE"] = cache
        print(f"{torch.get_num_threads()} threads")
        compare_sharing(data, options.rounds)
        shared = ["--optimizer.grad_clip_norm", "2", "--ema.decay", "0.999"]
        shared += ["--checkpoint_minutes", "1000"]
        shared += [f"--stage{number}.captions_per_image=5" for number in (1, 2)]
        trained = mobilenet(*shared, "--stage2.batch_size", "16", "--stage1.epochs", "0")
        measure_overhead(data, "16 pictures x 5 captions, image encoder trained", trained, options.steps)
        kept = mobilenet(*shared, "--stage1.batch_size", "128", "--stage2.epochs", "0")
        measure_overhead(data, "128 pictures x 5 captions on kept features", kept, options.steps)


if __name__ == "__main__":
    main()
