"""Searching 100,000 vectors: exactly against a matrix product with top-k, and through the graph, in one run.

    python benchmarks/search.py [--vectors 100000] [--dimension 512] [--threads 1 2]

The vectors lie in clusters whose sizes follow a power law, about centres in 64 directions, and spread more in some
directions than in others, as those of a trained model do. Prints, for single queries and for batches, the time of a
query of each way (the least of several rounds, all ways taking turns), how many times as fast as the matrix product
with top-k it is, and the measured recall@10 of the graph.
"""

import argparse
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from crosspair.gallery.engines.exact import ExactEngine
from crosspair.gallery.engines.hnsw import LEAST_RECALL, HnswEngine, Queries, build_graph, calibrate

BATCH = 256
TOP = 10


def clustered(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """float32 [count, dimension] of unit length."""
    generator = torch.Generator().manual_seed(seed)
    clusters = 1000
    sizes = torch.arange(1, clusters + 1, dtype=torch.float32) ** -1.0
    which = torch.multinomial(sizes, count, replacement=True, generator=generator)
    directions = torch.randn(64, dimension, generator=generator)
    centres = F.normalize(torch.randn(clusters, 64, generator=generator) @ directions, dim=1)
    spread = F.normalize(torch.arange(1, dimension + 1, dtype=torch.float32) ** -0.5, dim=0)
    rotation = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator)).Q
    noise = (torch.randn(count, dimension, generator=generator) * spread) @ rotation
    vectors: np.ndarray = F.normalize(centres[which] + 0.55 * noise, dim=1).numpy()
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    everything = clustered(options.vectors + 1000, options.dimension)
    vectors, queries = everything[: options.vectors], everything[options.vectors :]
    start = time.perf_counter()
    index = build_graph(vectors)
    print(f"{options.vectors:,} vectors of {options.dimension}; graph built in {time.perf_counter() - start:.0f} s")
    breadth, recalls = calibrate(index, vectors, [Queries("queries", queries[BATCH:])])
    print(f"graph: {breadth} candidates, recall@10 {recalls['queries']:.4f} (expected {LEAST_RECALL} at least)")
    exact, graph = ExactEngine(vectors), HnswEngine(index, vectors, breadth)
    asked, gallery = torch.from_numpy(queries), torch.from_numpy(vectors)
    ways: dict[str, Callable[[slice], object]] = {
        "matrix product, top-k": lambda some: (asked[some] @ gallery.T).topk(TOP, dim=1),
        "exact search": lambda some: exact.search(queries[some], TOP),
        "graph": lambda some: graph.search(queries[some], TOP),
    }
    for threads in options.threads:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        for size in (1, BATCH):
            times = dict.fromkeys(ways, float("inf"))
            for _ in range(options.rounds):
                for name, search in ways.items():
                    starts = range(0, 16 * size, size) if size == 1 else [0]
                    begun = time.perf_counter()
                    for first in starts:
                        search(slice(first, first + size))
                    times[name] = min(times[name], (time.perf_counter() - begun) / (len(starts) * size))
            for name, least in times.items():
                ratio = times["matrix product, top-k"] / least
                what = f"{threads} threads, {size} queries at once: {name}"
                print(f"{what}: {1e6 * least:,.0f} us a query, {ratio:.2f} times")


if __name__ == "__main__":
    main()
