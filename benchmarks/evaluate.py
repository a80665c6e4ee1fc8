"""Time and memory of exact retrieval metrics, against the bare matrix product and a full sort per query.

    python benchmarks/evaluate.py [--images 5000] [--captions 5] [--dimension 512] [--rounds 5] [--threads 2]

The bare product of all scores, `evaluate_retrieval` (R@K, mAP and ranks in both directions) and the intervals of its
metrics run in turn, so that all see the same machine; each round's ratio is printed, and the ratio of the fastest of
each. The textbook way sorts the whole gallery for every query and walks down the ranking; it runs on --sample queries a
direction and is scaled up.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from crosspair import evaluate_retrieval
from crosspair.evaluation.protocols import PLAIN, Evaluation
from crosspair.evaluation.uncertainty import intervals_of


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_megabytes(work: Callable[[], object]) -> float:
    """Memory of the process at its peak beyond what it held before (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def sort_and_walk(queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray, gallery_labels: np.ndarray) -> None:
    """Recall and average precision from one full argsort and one loop a query."""
    scores = queries @ gallery.T
    for row, label in zip(scores, labels, strict=True):
        ranking = np.argsort(-row)
        hits, precisions = 0, []
        for rank, item in enumerate(ranking, start=1):
            if gallery_labels[item] == label:
                hits += 1
                precisions.append(hits / rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="texts of each image")
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=100, help="queries a direction that are sorted in full")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(options.images, options.dimension, generator=generator)
    images = torch.nn.functional.normalize(centres + 3 * torch.randn(centres.shape, generator=generator))
    centres = centres.repeat_interleave(options.captions, 0)
    texts = torch.nn.functional.normalize(centres + 3 * torch.randn(centres.shape, generator=generator))
    labels = torch.arange(options.images)
    text_labels = labels.repeat_interleave(options.captions)
    del centres
    print(f"{len(images):,} images x {len(texts):,} texts x {options.dimension}, {options.threads} threads")

    def product() -> object:
        return images @ texts.T

    def exact() -> object:
        return evaluate_retrieval(images, texts, labels, text_labels).to_dict()

    query_labels = {"image_to_text": labels.numpy(), "text_to_image": text_labels.numpy()}
    evaluation = Evaluation(PLAIN, evaluate_retrieval(images, texts, labels, text_labels), (), query_labels)

    def intervals() -> object:
        return intervals_of(evaluation)

    exact()
    peak = peak_megabytes(exact)
    rounds = [(seconds(product), seconds(exact), seconds(intervals)) for _ in range(options.rounds)]
    bare, ours, uncertain = (min(column) for column in zip(*rounds, strict=True))

    x, z, x_labels, z_labels = (array.numpy() for array in (images, texts, labels, text_labels))
    some = min(options.sample, len(x))
    by_images = seconds(lambda: sort_and_walk(x[:some], z, x_labels[:some], z_labels)) * len(x) / some
    by_texts = seconds(lambda: sort_and_walk(z[:some], x, z_labels[:some], x_labels)) * len(z) / some

    print("ratios by round          " + " ".join(f"{second / first:.2f}" for first, second, _ in rounds))
    print(f"bare float32 product     {bare:8.2f} s")
    print(f"evaluate_retrieval       {ours:8.2f} s = {ours / bare:.2f} x the product, {peak:.0f} MB at its peak")
    print(f"intervals of its metrics {uncertain:8.3f} s = {uncertain / bare:.3f} x the product")
    textbook = by_images + by_texts
    print(
        f"full sort and loop       {textbook:8.1f} s = {textbook / ours:.0f} x ours (from {some} queries a direction)"
    )


if __name__ == "__main__":
    main()
