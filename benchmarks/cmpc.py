"""Time of CMPC, forward and backward, at the classes of CUHK-PEDES (11,003) and COCO (113,287), alternating.

    python benchmarks/cmpc.py [--rounds 5] [--threads 2] [--pairs 64 192] [--drawn 8192]

The plain form normalises W and multiplies it by either direction's projections; autograd does the rest. crosspair
divides the logits instead, both directions in one product. "products" are the three that no exact form can do without,
on bare matrices. The last line draws --drawn classes beside the batch's own. d = 512; the optimizer's step is not
included.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from crosspair.losses import cmpc_terms
from crosspair.losses.base import unit_vectors

DIMENSION = 512


def plain(images: Tensor, texts: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """The formula as it is written."""
    unit_weight = unit_vectors(weight, dim=0)
    total = images.new_zeros(())
    for x, z in ((images, texts), (texts, images)):
        directions = unit_vectors(z)
        projected = (x * directions).sum(dim=1, keepdim=True) * directions
        total = total + F.cross_entropy(projected @ unit_weight, labels)
    return total


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 192])
    parser.add_argument("--classes", type=int, nargs="+", default=[11003, 113287])
    parser.add_argument("--drawn", type=int, default=8192)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for classes in options.classes:
        weight = (torch.randn(DIMENSION, classes) * 0.02).requires_grad_()
        for pairs in options.pairs:
            compare(weight, pairs, options.rounds, options.drawn)


def compare(weight: Tensor, pairs: int, rounds: int, drawn: int) -> None:
    classes = weight.shape[1]
    images, texts = (torch.randn(pairs, DIMENSION, requires_grad=True) for _ in range(2))
    labels = torch.randint(classes, (pairs,))
    both, logits = torch.randn(2 * pairs, DIMENSION), torch.randn(2 * pairs, classes)
    inputs = (images, texts, weight)

    def ours(sampled: int = 0) -> Tensor:
        return sum(cmpc_terms(images, texts, labels, weight, sampled_classes=sampled), torch.zeros(()))

    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: torch.autograd.grad(plain(images, texts, labels, weight), inputs),
        "crosspair": lambda: torch.autograd.grad(ours(), inputs),
        "matmul_precision": lambda: (both @ weight.detach(), both.T @ logits, logits @ weight.detach().T),
        f"crosspair, {drawn:,} drawn": lambda: torch.autograd.grad(ours(drawn), inputs),
    }
    for work in ways.values():
        work()
    times = [{way: seconds(work) for way, work in ways.items()} for _ in range(rounds)]
    print(f"{classes:,} classes, {pairs} pairs, {torch.get_num_threads()} threads, {rounds} rounds")
    for way in ways:
        ratio = statistics.median(row["plain"] / row[way] for row in times)
        print(f"  {way:20} {1000 * min(row[way] for row in times):7.1f} ms, {ratio:.1f} times as fast as plain")


if __name__ == "__main__":
    main()
