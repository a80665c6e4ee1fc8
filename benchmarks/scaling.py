"""The table of docs/scaling.md: what it takes to encode, keep and search 1 million to 10 billion images.

    python benchmarks/scaling.py --rate 92

--rate: images a second and core, as benchmarks/index.py measures it (its number divided by its threads). Everything
else is computed: hours = n / (3600 rate), bytes of vectors = n d bytes a number, a graph of M = 16 links keeps 2 M
neighbours of 4 bytes (8 from 2^32 images on) beside each vector, and product quantization d / 8 bytes.
"""

import argparse
import math

SIZES = (1_000_000, 100_000_000, 10_000_000_000)
CORES = 64  # of a machine
MEMORY = 512e9 * 0.7  # bytes of a machine that vectors may take
LINKS = 16  # as crosspair asks Milvus for
GALLERY_ROW = 12_500  # bytes of a thumbnail: the middle of 5 to 20 KB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, required=True, help="pictures a second and core")
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--price", type=float, default=0.04, help="of a core for an hour (default 0.04)")
    options = parser.parse_args()
    print(f"| | {' | '.join(f'{size:,}' for size in SIZES)} |\n|---|{'---:|' * len(SIZES)}")
    for name, value in rows(options.rate, options.dimension, options.price).items():
        print(f"| {name} | {' | '.join(value)} |")


def rows(rate: float, dimension: int, price: float) -> dict[str, list[str]]:
    hours = [size / rate / 3600 for size in SIZES]
    exact = [size * 4 * dimension for size in SIZES]
    links = [size * 2 * LINKS * (4 if size < 1 << 32 else 8) for size in SIZES]
    graph = [vectors + near for vectors, near in zip(exact, links, strict=True)]
    half = [vectors / 2 + near for vectors, near in zip(exact, links, strict=True)]
    codes = [size * dimension / 8 for size in SIZES]
    return {
        "core hours to encode": [f"{one:,.0f}" for one in hours],
        f"at {price} a core hour": [f"{one * price:,.2f}" if one < 100 else f"{one * price:,.0f}" for one in hours],
        f"hours on one machine of {CORES} cores": [
            f"{one / CORES:,.2f}" if one < 100 else f"{one / CORES:,.0f}" for one in hours
        ],
        f"machines of {CORES} cores to encode in a day": [f"{math.ceil(one / CORES / 24):,}" for one in hours],
        "vectors, float32": [size_of(one) for one in exact],
        "vectors, float16": [size_of(one / 2) for one in exact],
        f"vectors, product quantization to {dimension // 8} bytes": [size_of(one) for one in codes],
        "graph (HNSW) and float32 vectors": [size_of(one) for one in graph],
        "machines of 512 GB that hold these in memory": [f"{math.ceil(one / MEMORY):,}" for one in graph],
        "the same with float16": [f"{math.ceil(one / MEMORY):,}" for one in half],
        "the same with product quantization, no graph": [f"{math.ceil(one / MEMORY):,}" for one in codes],
        "thumbnails": [size_of(size * GALLERY_ROW) for size in SIZES],
    }


def size_of(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
