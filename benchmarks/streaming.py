"""Rankings too large for memory: what was predicted against what it took, and a prediction for more.

    python benchmarks/streaming.py [--images 20000] [--captions 5] [--dimension 512] [--threads 2] [--shards 4]
                                   [--beyond 1000000 5000000] [--directory DIR]

Writes embeddings to files, maps them, and ranks them as `crosspair evaluate --embeddings DIRECTORY` does: in one go,
and in shards whose sum must be the same. Memory is that of the process without mapped files (Linux). The prediction for
--beyond is measured on files of that size that hold nothing but zeros and take no room on the disk.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from crosspair.evaluation.cost import duration, estimate_cost
from crosspair.evaluation.metrics import DirectionResult
from crosspair.evaluation.ranking import prepare_counting, rank_positives, ranks_of
from crosspair.evaluation.shards import count_shard, merge_parts

NAMES = ("image_embeddings", "text_embeddings", "image_labels", "text_labels")


class Peak:
    """Memory of the process beyond what it held at first, files left out, looked at ten times a second."""

    def __enter__(self) -> "Peak":
        self.before = self.most = self._now()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    @property
    def gigabytes(self) -> float:
        return (self.most - self.before) / 1e6

    def _watch(self) -> None:
        while not self.stop.wait(0.1):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def write(directory: Path, images: int, captions: int, dimension: int) -> None:
    """Texts around their images, a label for each image, in blocks."""
    random = np.random.default_rng(0)
    x, z = (
        np.lib.format.open_memmap(directory / f"{name}.npy", "w+", np.float32, (rows, dimension))
        for name, rows in (("image_embeddings", images), ("text_embeddings", images * captions))
    )
    for start in range(0, images, 1000):
        rows = slice(start, min(start + 1000, images))
        x[rows] = random.normal(size=(rows.stop - start, dimension))
        noise = random.normal(size=((rows.stop - start) * captions, dimension))
        z[start * captions : rows.stop * captions] = x[rows].repeat(captions, 0) + 8 * noise
    np.save(directory / "image_labels.npy", np.arange(images))
    np.save(directory / "text_labels.npy", np.arange(images).repeat(captions))


def empty(directory: Path, images: int, texts: int, dimension: int) -> None:
    """Files of zeros that take no room."""
    for name, rows in (("image_embeddings", images), ("text_embeddings", texts)):
        np.lib.format.open_memmap(directory / f"{name}.npy", "w+", np.float32, (rows, dimension))
    np.save(directory / "image_labels.npy", np.arange(images))
    np.save(directory / "text_labels.npy", np.arange(texts) % images)


def mapped(directory: Path) -> list[np.ndarray]:
    return [np.load(directory / f"{name}.npy", mmap_mode="r") for name in NAMES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--captions", type=int, default=5, help="texts of each image")
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--beyond", type=int, nargs=2, default=(1_000_000, 5_000_000), metavar=("IMAGES", "TEXTS"))
    parser.add_argument("--directory", type=Path, help="where the files are written; default: that of temporary files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        write(directory, options.images, options.captions, options.dimension)
        measure(directory, options.shards)
        images, texts = options.beyond
        empty(directory, images, texts, options.dimension)
        counting = prepare_counting(*mapped(directory))
        print(estimate_cost(counting, counting.pairs()).describe())


def measure(directory: Path, shards: int) -> None:
    counting = prepare_counting(*mapped(directory))
    with Peak() as measuring:
        predicted = estimate_cost(counting, counting.pairs())
    print(predicted.describe(), flush=True)
    del counting
    with Peak() as peak:
        start = time.perf_counter()
        ranks = rank_positives(*mapped(directory))
        seconds = time.perf_counter() - start
        metrics = DirectionResult(ranks[1]).to_dict()
    print(
        f"in one go: {duration(seconds)} = {seconds / predicted.seconds:.2f} x the prediction, "
        f"{peak.gigabytes:.2f} GB = {peak.gigabytes * 1e9 / predicted.memory:.2f} x the prediction "
        f"(text to image mAP {metrics['mAP']:.2f}, {measuring.gigabytes:.2f} GB while measuring)",
        flush=True,
    )
    parts = [directory / f"part-{number}.npz" for number in range(1, shards + 1)]
    start = time.perf_counter()
    for number, part in enumerate(parts, 1):
        count_shard(prepare_counting(*mapped(directory)), (number, shards), part, {})
    total = time.perf_counter() - start
    merged = prepare_counting(*mapped(directory))
    merge_parts(merged, parts, {})
    same = all((a.ranks == b.ranks).all() for a, b in zip(ranks, ranks_of(merged).values(), strict=True))
    print(f"in {shards} shards, one after the other: {total / seconds:.2f} x the time in one go; same ranks: {same}")


if __name__ == "__main__":
    main()
