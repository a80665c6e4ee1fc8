"""What TensorFlow's way of decoding a JPEG, with the fast integer cosine transform, changes: docs/fidelity.md.

    pip install simplejpeg
    python benchmarks/jpeg.py MODEL --data flickr8k [--split val] [--images 500]

Pixels, embeddings and recall of a trained model, the images decoded by libjpeg-turbo's fast transform (for the
reference images it gives TensorFlow's pixels exactly) and by its exact one, which crosspair uses everywhere.
"""

import argparse
from pathlib import Path

import numpy as np
import simplejpeg

from crosspair import DualEncoder, evaluate_retrieval
from crosspair.data.dataset import open_data
from crosspair.data.images import decode_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    split = open_data(options.data).split(options.split)
    count = min(options.images, len(split))
    encoded = [bytes(split.image(row)) for row in range(count)]
    images = {
        "exact": [decode_image(data).permute(1, 2, 0).numpy() for data in encoded],
        "fast": [simplejpeg.decode_jpeg(data, fastdct=True) for data in encoded],
    }
    model = DualEncoder.from_pretrained(options.model)
    captions = split.captions[:count]
    texts = model.encode_text([caption for several in captions for caption in several])
    labels = np.arange(count)
    text_labels = np.repeat(labels, [len(several) for several in captions])
    embeddings = {way: model.encode_image(each) for way, each in images.items()}
    levels = [abs(a.astype(int) - b) for a, b in zip(*images.values(), strict=True)]
    cosines = (embeddings["exact"] * embeddings["fast"]).sum(1)
    print(f"{count:,} pictures, fast against exact")
    print(f"levels of 255: mean {np.mean([each.mean() for each in levels]):.2f}, at most {max(map(np.max, levels))}")
    print(f"cosine of the embeddings: mean {cosines.mean():.4f}, at least {cosines.min():.4f}")
    for way, images in embeddings.items():
        print(f"rsum, {way}: {evaluate_retrieval(images, texts, labels, text_labels).to_dict()['rsum']:.1f}")


if __name__ == "__main__":
    main()
