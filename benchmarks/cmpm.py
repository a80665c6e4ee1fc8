"""Time and memory of CMPM, forward and backward, against the textbook form, in one run, alternating.

    python benchmarks/cmpm.py [--rounds 3] [--threads 2] [--sizes 8192 16384] [--large]

The textbook form writes down the formula: label mask, q, softmax, ratio and logarithm as n x n matrices, in both
directions, and leaves the gradient to autograd (six products of n n d). Each form's memory is what its own process
needs at its peak beyond the embeddings. 16,384 takes the textbook form 12 GB; it is timed there once. --large adds
n = 65,536 by tiles alone. The embeddings are 512 numbers wide, two noisy views of the same centre; gradient
errors are against float64 at n = 2,048.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from crosspair.losses import cmpm_terms

DIMENSION, TARGET = 512, 8192


def embeddings(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, texts and labels of n pairs, one in four of which shares its label with another."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(n * 2, (n,), generator=generator)
    centres = torch.randn(n, DIMENSION, generator=generator)
    lengths = 15 + 5 * torch.rand(2, n, 1, generator=generator)
    sides = [
        F.normalize(centres + 1.2 * torch.randn(n, DIMENSION, generator=generator)) * lengths[side] for side in (0, 1)
    ]
    return sides[0].requires_grad_(), sides[1].requires_grad_(), labels


def textbook(images: Tensor, texts: Tensor, labels: Tensor, epsilon: float = 1e-8) -> Tensor:
    """The formula as the paper and its published code have it."""
    mask = (labels[:, None] == labels[None, :]).to(images.dtype)
    total = images.new_zeros(())
    for x, z, matches in ((images, texts, mask), (texts, images, mask.T)):
        p = F.softmax(x @ F.normalize(z).T, dim=1)
        q = matches / matches.sum(dim=1, keepdim=True)
        total = total + (p * torch.log(p / (q + epsilon) + epsilon)).sum(dim=1).mean()
    return total


def tiled(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    return sum(cmpm_terms(images, texts, labels), torch.zeros(()))


def tiled_bf16(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    return sum(cmpm_terms(images, texts, labels, matmul_precision="bf16"), torch.zeros(()))


FORMS = {"textbook": textbook, "tiles": tiled, "tiles, bf16 products": tiled_bf16}


def seconds(form: str, values: tuple[Tensor, Tensor, Tensor]) -> float:
    start = time.perf_counter()
    torch.autograd.grad(FORMS[form](*values), values[:2])
    return time.perf_counter() - start


def status(field: str) -> float:
    """Megabytes of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def report_alone(form: str, n: int) -> None:
    """Print seconds of a run and megabytes at its peak, beyond the embeddings and in all; a small run came before."""
    seconds(form, embeddings(64))
    values = embeddings(n)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    took = seconds(form, values)
    print(took, status("VmHWM") - before, status("VmHWM"))


def alone(form: str, n: int, threads: int) -> tuple[float, float, float]:
    command = [sys.executable, __file__, "--alone", form, "--sizes", str(n), "--threads", str(threads)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took, beyond, whole = map(float, printed.split())
    return took, beyond, whole


def gradient_errors(n: int = 2048) -> None:
    images, texts, labels = embeddings(n)
    doubles = [side.detach().double().requires_grad_() for side in (images, texts)]
    exact = torch.autograd.grad(sum(cmpm_terms(*doubles, labels), torch.zeros(())), doubles)
    print(f"gradients against float64 at n = {n:,}, norm of the difference over the norm:")
    for form in ("textbook", "tiles", "tiles, bf16 products"):
        found = torch.autograd.grad(FORMS[form](images, texts, labels), (images, texts))
        errors = [(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)]
        print(f"  {form:22} images {errors[0]:.1e}, texts {errors[1]:.1e}")


def compare(n: int, rounds: int, threads: int) -> None:
    values = embeddings(n)
    times = [{form: seconds(form, values) for form in FORMS} for _ in range(rounds)]
    memory = {form: alone(form, n, threads)[1] for form in FORMS}
    print(f"n = {n:,}, d = {DIMENSION}, forward and backward, {threads} threads, {rounds} rounds")
    for form in FORMS:
        best = min(row[form] for row in times)
        ratios = sorted(row["textbook"] / row[form] for row in times)
        share = memory["textbook"] / memory[form]
        print(
            f"  {form:22} {best:7.2f} s, {ratios[len(ratios) // 2]:.1f} times as fast ({ratios[0]:.1f} to "
            f"{ratios[-1]:.1f}); {memory[form]:7.0f} MB, 1/{share:.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sizes", type=int, nargs="+", default=[TARGET, 2 * TARGET])
    parser.add_argument("--large", action="store_true", help="n = 65,536 too, by tiles alone: a few minutes")
    parser.add_argument("--alone", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        report_alone(options.alone, options.sizes[0])
        return
    gradient_errors()
    for n in options.sizes:
        compare(n, options.rounds if n <= TARGET else 1, options.threads)
    if options.large:
        for form in ("tiles", "tiles, bf16 products"):
            took, beyond, whole = alone(form, 65536, options.threads)
            print(f"n = 65,536, {form}: {took:.0f} s, {beyond:.0f} MB beyond the embeddings, {whole:.0f} MB in all")


if __name__ == "__main__":
    main()
