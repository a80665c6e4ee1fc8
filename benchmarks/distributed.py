"""Training steps of one batch shared by 1, 2, ... processes on this machine: time, memory and bytes exchanged.

    python benchmarks/distributed.py [--processes 1 2] [--images 256] [--captions 2] [--steps 3] [--dim 512]

BiLSTM and both projections on features of 1,280 numbers, CMPM + CMPC, float32, a thread a process, gloo. For each
number of processes: the median time of a step, the first process's largest memory over that before the first step, and
what a process hands to collectives in a step (gathered embeddings, their gradients, those of the losses' weights and
of the model's). A ring then carries (P - 1) / P of a gather's result, and twice that share of an all-reduce.
"""

import argparse
import os
import resource
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from crosspair.data.batching import Batch
from crosspair.data.tokens import Vocabulary
from crosspair.encode.model import DualEncoder
from crosspair.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig
from crosspair.training.distributed import counted_processes, launch
from crosspair.training.losses import MatchingLosses
from crosspair.training.optimizer import StageOptimizer
from crosspair.training.recipe import Recipe, StageConfig
from crosspair.training.step import TrainingStep

WORDS, LENGTH = 2500, 12


def batch_of(images: int, captions: int, num_features: int, rank: int, processes: int) -> Batch:
    """This process's share of a batch in which every image is a class of its own."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, num_features, generator=generator)
    tokens = torch.randint(2, WORDS, (images * captions, LENGTH), generator=generator)
    rows = range(images * rank // processes, images * (rank + 1) // processes)
    own, texts = slice(rows.start, rows.stop), slice(rows.start * captions, rows.stop * captions)
    labels = torch.arange(images)
    image_rows = torch.arange(len(rows)).repeat_interleave(captions)
    lengths = torch.full((len(rows) * captions,), LENGTH)
    text_labels = labels[own].repeat_interleave(captions)
    return Batch(tokens[texts], lengths, labels[own], text_labels, image_rows, features=features[own])


def counted(name: str, counts: dict[str, int]) -> None:
    """Have a collective of torch.distributed add the bytes of its largest argument."""
    collective = getattr(dist, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        sizes = [sum(part.nbytes for part in (a if isinstance(a, list) else [a])) for a in arguments[:2] if is_data(a)]
        counts[name] = counts.get(name, 0) + max(sizes)
        return collective(*arguments, **options)

    setattr(dist, name, counting)


def is_data(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) or (isinstance(argument, list) and isinstance(argument[0], torch.Tensor))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def work(rank: int, processes: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    recipe = counted_processes(Recipe(device="cpu", precision="32-true"))
    together = launch(recipe)
    torch.manual_seed(0)
    config = ModelConfig(ImageEncoderConfig("test_resnet", "none"), projection=ProjectionConfig(dim=options.dim))
    model = DualEncoder(config, Vocabulary([f"word{number}" for number in range(WORDS)]))
    model.image_projection = type(model.image_projection)(1280, options.dim)
    model.freeze_image_encoder()
    losses = MatchingLosses(recipe.loss, options.images, options.dim)
    optimizer = StageOptimizer(model, losses, recipe.optimizer, StageConfig(1), options.steps)
    step = TrainingStep(together, together.fabric.setup_module(model), losses, optimizer, None)
    batch = batch_of(options.images, options.captions, 1280, rank, processes)
    before, counts, times = peak_mb(), {}, []
    step(batch, 0)
    for name in ("all_gather", "all_reduce", "reduce_scatter"):
        counted(name, counts)
    for number in range(options.steps):
        start = time.perf_counter()
        loss = float(step(batch, number)["loss"])
        times.append(time.perf_counter() - start)
    if rank == 0:
        trained = sum(value.nbytes for value in model.parameters() if value.requires_grad) if processes > 1 else 0
        sent = {**{name: size // options.steps for name, size in counts.items()}, "gradients (DDP)": trained}
        parts = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sent.items() if size)
        print(
            f"processes {processes}: {statistics.median(times):.3f} s a step, {peak_mb() - before:.0f} MB more memory, "
            f"loss {loss:.5f}; {parts or 'nothing sent'}",
            flush=True,
        )
    together.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--captions", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    for processes in options.processes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        children = []
        for rank in range(processes):
            children.append(os.fork())
            if children[-1] == 0:
                os.environ |= {"TORCHELASTIC_RUN_ID": "benchmark", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
                os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
                work(rank, processes, options)
                os._exit(0)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
