"""A stage 1 of 15 epochs on Flickr8k: features computed once, against an encoder that runs for every pair.

    python benchmarks/stage1.py [--data flickr8k] [--encoders slim_mobilenet_v1 slim_resnet_v1_152] [--rounds 3]

The original's way: 32 pairs a step, each image decoded and sent through the frozen encoder (in training mode and
float32) for every one of its captions in every epoch. Ours: choosing a backend, each image, also flipped,
through it once, then steps of 128 images with their 5 captions each on the features, in the machine's own precision.
Both are this package's code and read every caption 15 times; weights are random, which changes no time. Nothing runs
to its end: a few steps and images of each, in turns, are scaled up to the whole, for 6,000 images with 5 captions
each (or those of --data). Validation is left out on both sides.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from crosspair.data.dataset import PreparedSplit
from crosspair.encode.backends import choose_backend
from crosspair.encode.features import image_features, kept_agreement
from crosspair.training.recipe import Recipe
from crosspair.training.recipe_files import load_recipe
from trainers import opened, trainer

FLICKR8K = 6000  # images with 5 captions each
EPOCHS = 15
TARGETS = {"slim_mobilenet_v1": 8, "slim_resnet_v1_152": 20}


class Part:
    """Some images of a split, to encode a few at a time."""

    def __init__(self, split: PreparedSplit, rows: range) -> None:
        self.split, self.rows = split, rows
        self.image_ids = [split.image_ids[row] for row in rows]
        self.checksum = f"{split.checksum} {rows}"

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> bytes:
        return self.split.image(self.rows[index])


def recipe(encoder: str, *settings: str) -> Recipe:
    overrides = ["--model.image.name", encoder, "--model.image.weights", "none", *settings]
    return load_recipe("flickr30k-mobilenet-cmpm-cmpc", overrides)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(encoder: str, split: PreparedSplit, val: PreparedSplit, images: int, captions: int, rounds: int) -> None:
    per_pair = trainer(recipe(encoder, "--precision", "32-true", "--stage1.freeze_bn_stats", "false"), split, 1)
    per_pair_steps = EPOCHS * captions // per_pair.stage.batch_size
    five_captions = ("--stage1.batch_size", "128", "--stage1.captions_per_image", "5")
    chunk = 32 if "resnet" in encoder else 128  # images to encode in a round, so that it takes some seconds
    placeholder = np.zeros((len(split), 2, per_pair.model.num_image_features), dtype=np.float32)
    ours = trainer(recipe(encoder, *five_captions), split, 1, features=placeholder)
    steps = EPOCHS * captions // 640

    def encode(rows: range) -> None:
        image_features(ours.model, Part(split, rows), backend, hflip=True, progress=False)  # type: ignore[arg-type]

    started = time.perf_counter()
    measure = kept_agreement(ours.model, val)
    said = {"precision": ours.recipe.precision, "tell": lambda line: print(f"  {line}")}
    backend = choose_backend(ours.model, "auto", measure, **said)  # type: ignore[arg-type]
    choosing = time.perf_counter() - started
    encode(range(2))
    per_pair.advance()
    ours.advance()
    times: list[tuple[float, float, float]] = []
    for number in range(rounds):
        start = (number * chunk) % max(1, len(split) - chunk)
        slow = seconds(per_pair.advance)
        encoding = seconds(lambda rows=range(start, start + chunk): encode(rows))  # type: ignore[misc]
        times.append((slow, encoding, seconds(ours.advance)))

    def totals(slow: float, encoding: float, step: float) -> tuple[float, float, float, float]:
        encoded, trained = choosing + encoding * images / chunk, step * steps
        return slow * per_pair_steps, encoded + trained, encoded, trained

    ratios = [theirs / mine for theirs, mine, *_ in (totals(*one) for one in times)]
    slow, encoding, step = (statistics.median(column) for column in zip(*times, strict=True))
    theirs, mine, encoded, trained = totals(slow, encoding, step)
    print(f"  per pair: {slow:.2f} s a step of 32 pairs, x {per_pair_steps:,} steps = {theirs / 3600:.2f} h")
    print(
        f"  features: {choosing:.0f} s to choose a backend, {2 * chunk / encoding:.0f} pictures/s = {encoded:.0f} s to "
        f"encode; {step:.2f} s a step of 640 pairs, x {steps} steps = {trained:.0f} s; together {mine / 60:.1f} min"
    )
    wanted = f", wanted at least {TARGETS[encoder]}" if encoder in TARGETS else ""
    print(
        f"{encoder}: {theirs / mine:.1f} times as fast (by round {min(ratios):.1f} to {max(ratios):.1f}{wanted}; "
        f"extrapolated from {rounds} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="prepared data; without it pictures are made up")
    parser.add_argument("--encoders", nargs="+", default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with opened(options, 768) as data, tempfile.TemporaryDirectory() as cache:
        os.environ["CROSSPAIR_CACHE"] = cache  # nothing is to be found that another run encoded
        split = data.split("train")
        images = FLICKR8K if options.data is None else len(split)
        captions = 5 * FLICKR8K if options.data is None else sum(map(len, split.captions))
        print(f"{images:,} pictures, {captions:,} captions, {EPOCHS} epochs, {torch.get_num_threads()} threads")
        for encoder in options.encoders:
            print(f"{encoder}:", flush=True)
            measure(encoder, split, data.split("val"), images, captions, options.rounds)


if __name__ == "__main__":
    main()
