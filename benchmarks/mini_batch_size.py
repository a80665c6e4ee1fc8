"""Memory and time of one training step on a large batch, whole and in mini batches, in processes of their own.

    python benchmarks/mini_batch_size.py [--images 64] [--mini-batch-size 8] [--threads 2] [--rounds 3]

MobileNet-v1 at 224 pixels and the BiLSTM, 5 captions an image, CMPM + CMPC, forward and backward. Memory is what the
step adds to the process at its peak; time is the median of the rounds, which alternate. That gradients are those of the
whole batch is tested (tests/training/test_step.py).
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection

import torch
from lightning_fabric import Fabric

from crosspair.data.batching import Batch
from crosspair.data.tokens import Vocabulary
from crosspair.encode.model import DualEncoder
from crosspair.models.config import ImageEncoderConfig, ModelConfig
from crosspair.training.losses import MatchingLosses
from crosspair.training.recipe import Recipe
from crosspair.training.step import EmbeddingsInParts

CAPTIONS, WORDS = 5, 2500


def step(images: int, parts: int, threads: int, pipe: Connection) -> None:
    """Send the added memory in megabytes, then the seconds of a further step for every request that comes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    config = ModelConfig(image=ImageEncoderConfig("mobilenetv1_100", "none", [224, 224]))
    model = DualEncoder(config, Vocabulary([f"word{number}" for number in range(WORDS)])).eval()
    losses = MatchingLosses(Recipe().loss, images, config.projection.dim)
    wrapped = fabric.setup_module(model)
    batch = random_batch(images)

    def forward_and_backward() -> None:
        model.zero_grad()
        in_parts = EmbeddingsInParts(fabric, model, batch, parts) if parts > 1 else None
        if in_parts is None:
            embeddings = wrapped(batch.tokens, batch.lengths, images=batch.images)
        else:
            embeddings = in_parts.image_embeddings, in_parts.text_embeddings
        fabric.backward(losses(*embeddings, batch)[0])
        if in_parts is not None:
            in_parts.backward()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward_and_backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((peak - before) / 1024)
    while pipe.recv():
        start = time.perf_counter()
        forward_and_backward()
        pipe.send(time.perf_counter() - start)


def random_batch(images: int) -> Batch:
    rows = torch.arange(images).repeat_interleave(CAPTIONS)
    lengths = torch.randint(6, 17, (len(rows),))
    tokens = torch.randint(2, WORDS, (len(rows), 16))
    tokens[torch.arange(16) >= lengths[:, None]] = 0
    pixels = torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8)
    return Batch(tokens, lengths, torch.arange(images), rows, rows, images=pixels)


def start(*arguments: int) -> Connection:
    """A fresh process that takes steps when it is asked."""
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=step, args=(*arguments, theirs), daemon=True).start()
    return ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--mini-batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    parts = -(-options.images // options.mini_batch_size)
    ways = [start(options.images, number, options.threads) for number in (1, parts)]
    memory = [way.recv() for way in ways]
    seconds: list[list[float]] = [[], []]
    for _ in range(options.rounds):
        for way, times in zip(ways, seconds, strict=True):
            way.send(True)
            times.append(way.recv())
    for way in ways:
        way.send(False)
    whole, ours = (statistics.median(times) for times in seconds)
    print(f"{options.images} pictures x {CAPTIONS} captions, float32, {options.threads} threads")
    print(f"whole batch:     {memory[0]:6.0f} MB, {whole:5.1f} s")
    print(f"mini batch {options.mini_batch_size:3}: {memory[1]:6.0f} MB, {ours:5.1f} s")
    print(f"memory {memory[0] / memory[1]:.1f} times less, time {ours / whole:.2f} times")


if __name__ == "__main__":
    main()
