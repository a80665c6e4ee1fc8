"""Indexing a folder of images end to end against eager PyTorch in float32, in one run.

    python benchmarks/index.py MODEL IMAGES [--images 1500] [--threads 2]

MODEL: a model's directory; IMAGES: a folder of JPEG files, of which the first ones are linked into a folder of their
own. `crosspair index` reads, decodes, resizes, encodes and writes embeddings, items and thumbnails, each time into a
new gallery; loading the model and converting it count. The other side is the textbook: Pillow opens one image after
the other, batches of 32 go through the same encoder in float32 with contiguous weights, and the vectors are kept.
Prints images per second of both and how many times as many the first are.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from crosspair.encode.model import DualEncoder
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.indexing import index_images

BATCH = 32


@torch.inference_mode()
def textbook(model: DualEncoder, paths: list[Path]) -> np.ndarray:
    size = (model.image_input.width, model.image_input.height)
    rows = []
    for start in range(0, len(paths), BATCH):
        images = [np.asarray(Image.open(path).convert("RGB").resize(size)) for path in paths[start : start + BATCH]]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        rows.append(F.normalize(model.embed_image_features(model.image_features(pixels)), dim=1))
    vectors: np.ndarray = torch.cat(rows).numpy()
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1500, help="indexed in a round (default 1500)")
    parser.add_argument("--textbook", type=int, default=256, help="pictures of the other side (default 256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = sorted(options.folder.glob("*.jpg"))[: options.images]
    model = DualEncoder.from_pretrained(options.model)
    model.use_channels_last(False)
    textbook(model, paths[:BATCH])
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "images"
        source.mkdir()
        for path in paths:
            try:
                os.link(path, source / path.name)
            except OSError:  # another disk
                (source / path.name).write_bytes(path.read_bytes())
        for number in range(options.rounds):
            begun = time.perf_counter()
            expected = textbook(model, paths[: options.textbook])
            slow = len(expected) / (time.perf_counter() - begun)
            gallery = Path(temporary) / str(number)
            begun = time.perf_counter()
            index_images(options.model, source, gallery, threads=options.threads, progress=False, tell=print)
            fast = len(paths) / (time.perf_counter() - begun)
            ratios.append(fast / slow)
            close = (np.array(Gallery.open(gallery).embeddings[: len(expected)]) * expected).sum(axis=1)
            print(
                f"crosspair index {fast:.0f} pictures/s, textbook {slow:.0f} pictures/s: {fast / slow:.2f} times; "
                f"cosine of their vectors {close.mean():.4f} on average"
            )
    print(f"{np.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
