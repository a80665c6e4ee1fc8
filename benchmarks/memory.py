"""What it brings on a CPU that a process keeps the memory it frees, and encodes few images at once. Alternating.

    python benchmarks/memory.py [--data flickr8k] [--recipe flickr8k-lite0] [--stage 2] [--rounds 20]

Steps: two processes train on the same batches in turns, one of them as `crosspair train` does, the other with the C
library as it is. Prints the median of a step after WARM others, the seconds in the system's own code, and the peak of
memory.
Encoding: 64 images with the recipe's model, all together and as many at once as `encode_image` takes. No memory kept.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from crosspair.data.dataset import PreparedSplit
from crosspair.encode.model import create_model
from crosspair.training.recipe import Recipe
from crosspair.training.recipe_files import load_recipe
from trainers import opened
from turns import Way, time_steps

WARM = 6
IMAGES = 64


def compare_steps(recipe: Recipe, split: PreparedSplit, stage: int, rounds: int) -> None:
    ways = {"freed memory given back": Way(recipe, keeps_memory=False), "freed memory kept": Way(recipe)}
    found = time_steps(ways, split, stage, rounds, WARM)
    for way, took in found.items():
        print(f"{way}: {took.median:.2f} s a step, {took.in_system:.0f} s in the system, at most {took.peak:.1f} GB")
    given_back, kept = (took.median for took in found.values())
    print(f"kept memory: {given_back / kept:.2f} times as fast")


def compare_encoding(recipe: Recipe, split: PreparedSplit, rounds: int) -> None:
    model = create_model(recipe.model, ["a dog"]).eval()
    images = [split.image(row) for row in range(IMAGES)]
    times: dict[int, list[float]] = {IMAGES: [], model.images_at_once: []}
    for _ in range(1 + rounds):
        for size, seconds in times.items():
            start = time.perf_counter()
            model.encode_image(images, size)
            seconds.append(time.perf_counter() - start)
    medians = {size: statistics.median(seconds[1:]) for size, seconds in times.items()}
    named = ", ".join(f"{median:.2f} s by {size}" for size, median in medians.items())
    together, few = medians.values()
    print(f"encoding {IMAGES} pictures: {named}: {together / few:.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recipe", default="flickr8k-lite0")
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, ["--device", "cpu"])
    with opened(options, images=1000) as data:
        split = data.split("train")
        print(f"{options.recipe}, {torch.get_num_threads()} threads")
        compare_steps(recipe, split, options.stage, options.rounds)
        compare_encoding(recipe, split, max(3, options.rounds // 4))


if __name__ == "__main__":
    main()
