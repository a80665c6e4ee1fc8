"""Training steps fed from a DATA directory against the same steps fed from memory, in one run, alternating.

    python benchmarks/loader.py DATA [--rounds 5] [--recipe flickr30k-mobilenet-cmpm-cmpc] [--any.field value]

Every way trains on the same batches of the recipe's second stage (the image encoder starts from random weights):
batches kept in memory; decoded as they are needed; and copied from the cache that decoded_cache_gb allows.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from crosspair.data.batching import Batch, load_batches
from crosspair.data.dataset import open_data
from crosspair.encode.model import create_model
from crosspair.training.distributed import launch
from crosspair.training.losses import MatchingLosses
from crosspair.training.machine import settled
from crosspair.training.optimizer import StageOptimizer
from crosspair.training.recipe_files import load_recipe
from crosspair.training.step import TrainingStep
from crosspair.training.trainer import batch_source, epoch_plan

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="flickr30k-mobilenet-cmpm-cmpc")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="of each way in a round (default 6)")
    options, overrides = parser.parse_known_args()
    recipe = settled(load_recipe(options.recipe, ["--model.image.weights", "none", "--device", "cpu", *overrides]))
    stage, split = recipe.stage2, open_data(options.data).split("train")
    torch.manual_seed(0)
    model = create_model(recipe.model, (caption for row in split.captions for caption in row))
    processes = launch(recipe)
    losses = MatchingLosses(recipe.loss, len(set(split.labels.tolist())), recipe.model.projection.dim)
    optimizer = StageOptimizer(model, losses, recipe.optimizer, stage, 10_000)
    training = TrainingStep(processes, processes.fabric.setup_module(model), losses, optimizer, None)

    plain = batch_source(split, model, replace(recipe, decoded_cache_gb=0.0), stage, None, progress=False)
    cached = batch_source(split, model, replace(recipe, decoded_cache_gb=100.0), stage, None, progress=True)
    plans = list(islice(epoch_plan(plain, recipe, stage, 2, 0, 1), options.steps))
    kept = [plain[plan] for plan in plans]
    for batch, plan in zip(kept, plans, strict=True):
        assert batch.images is not None
        assert torch.equal(batch.images, cached[plan].images), "the cache gives other pictures"
    ways: dict[str, Callable[[], Iterable[Batch]]] = {
        "memory": lambda: kept,
        "decoded": lambda: load_batches(plain, plans, 0, CPU),
        "cached": lambda: load_batches(cached, plans, 0, CPU),
    }

    def seconds(batches: Iterable[Batch]) -> float:
        """Of a step, its batch included."""
        start = time.perf_counter()
        for number, batch in enumerate(batches):
            training(batch, number)
        return (time.perf_counter() - start) / len(plans)

    for way in ways.values():
        seconds(way())
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            times[name].append(seconds(ways[name]()))
    print(f"{recipe.model.image.name}, {stage.batch_size} pictures a step, {recipe.precision}, {len(split):,} pictures")
    for name, source in (("decoded", plain), ("cached", cached)):
        start = time.perf_counter()
        for plan in plans:
            source[plan]
        alone = (time.perf_counter() - start) / sum(len(plan.images) for plan in plans)
        ratios = [one / other for one, other in zip(times["memory"], times[name], strict=True)]
        print(
            f"{name}: {1e3 * alone:.2f} ms a picture to load, {statistics.median(times[name]):.3f} s a step against "
            f"{statistics.median(times['memory']):.3f} s from memory: {100 * statistics.median(ratios):.1f} % of its "
            f"speed ({100 * min(ratios):.1f} to {100 * max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
