"""What it brings on a CPU that a process keeps the memory it frees, and encodes few pictures at a time. Alternating.

    python benchmarks/memory.py [--data flickr8k] [--recipe flickr8k-lite0] [--stage 2] [--rounds 20]

Steps: two processes train on the same batches in turns, one of them as `cmpl train` does, the other with the C library
as it is. Prints the median of a step behind the first WARM, the time in the system's own code, and the peak of memory.
Encoding: 64 pictures with the recipe's model, all together and as many at once as `encode_image` takes. No memory kept.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import torch

import trainers
from cmpl.data.dataset import Split
from cmpl.models.dual_encoder import create_model
from cmpl.training.recipe import Recipe
from cmpl.training.recipe_files import load_recipe

WARM = 6
WAYS = {"freed memory given back": False, "freed memory kept": True}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def train_when_asked(asked: Connection, recipe: Recipe, split: Split, stage: int, keep: bool) -> None:
    """A step for each True that comes, answered with its seconds; at the end seconds in the system and peak GB."""
    with patch.object(trainers, "keep_memory", trainers.keep_memory if keep else lambda: None):
        training = trainers.trainer(recipe, split, stage)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    while asked.recv():
        asked.send(seconds(training.advance))
    used = resource.getrusage(resource.RUSAGE_SELF)
    asked.send((used.ru_stime - before, used.ru_maxrss / 1e6))


def compare_steps(recipe: Recipe, split: Split, stage: int, rounds: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    asking: dict[str, Connection] = {}
    for way, keep in WAYS.items():
        asking[way], asked = spawn.Pipe()
        spawn.Process(target=train_when_asked, args=(asked, recipe, split, stage, keep), daemon=True).start()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(WARM + rounds):
        for way, connection in asking.items():
            connection.send(True)
            times[way].append(connection.recv())
    medians = [statistics.median(each[WARM:]) for each in times.values()]
    for (way, connection), median in zip(asking.items(), medians, strict=True):
        connection.send(False)
        system, peak = connection.recv()
        print(f"{way}: {median:.2f} s a step, {system:.0f} s in the system, at most {peak:.1f} GB")
    print(f"kept memory: {medians[0] / medians[1]:.2f} times as fast")


def compare_encoding(recipe: Recipe, split: Split, rounds: int) -> None:
    model = create_model(recipe.model, ["a dog"]).eval()
    pictures = [split.picture(row) for row in range(64)]
    sizes = (64, model.pictures_at_once)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(1 + rounds):
        for size in sizes:
            times[size].append(seconds(lambda size=size: model.encode_image(pictures, size)))
    together, few = (statistics.median(each[1:]) for each in times.values())
    print(
        f"encoding 64 pictures together {together:.2f} s, by {sizes[1]} {few:.2f} s: {together / few:.2f} times as fast"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recipe", default="flickr8k-lite0")
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, ["--device", "cpu"])
    with trainers.opened(options, pictures=1000) as data:
        split = data.split("train")
        print(f"{options.recipe}, {torch.get_num_threads()} threads")
        compare_steps(recipe, split, options.stage, options.rounds)
        compare_encoding(recipe, split, max(3, options.rounds // 4))


if __name__ == "__main__":
    main()
