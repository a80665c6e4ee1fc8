"""Images and captions a second of each backend of a model, and how near it is to PyTorch in float32, in one run.

    python benchmarks/backends.py [--model MODEL] [--data DATA] [--threads 1] [--rounds 5]

Resized images and numbered words to embeddings of unit length: decoding and tokenizing take no part. Backends take
turns; the least time of each is taken, and `times` is its rate over that of PyTorch in float32, channels first.
Without --model an EfficientNet-Lite0 (its package's weights) with an untrained BiLSTM; without --data images of noise
and sentences of random words, for which a cosine says less than for photographs.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crosspair.data.dataset import open_data
from crosspair.data.images import decode_image
from crosspair.data.tokens import Vocabulary, pad
from crosspair.encode.backends import cosines
from crosspair.encode.export import Sample, export_model
from crosspair.encode.model import DualEncoder
from crosspair.encode.onnx import ONNXRuntimeBackend
from crosspair.encode.openvino import OpenVINOBackend, convert_encoders, openvino_precisions
from crosspair.models.config import ImageEncoderConfig, ModelConfig

IMAGES, CAPTIONS = 64, 320


class Encoders(Protocol):
    """The part of a backend that is measured."""

    def encode_images(self, images: Tensor) -> Tensor: ...
    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor: ...


class TorchEncoders:
    """PyTorch with a layout of the images and in a precision."""

    def __init__(self, model: DualEncoder, *, channels_last: bool, bf16: bool) -> None:
        self.model, self.channels_last, self.bf16 = model, channels_last, bf16

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        self.model.use_channels_last(self.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            parts = [self.model.image_features(part) for part in images.split(16)]
            return F.normalize(self.model.embed_image_features(torch.cat(parts)).float(), dim=1)

    @torch.inference_mode()
    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return F.normalize(self.model.embed_tokens(tokens, lengths).float(), dim=1)


def inputs(model: DualEncoder, data: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    if data is not None:
        split = open_data(data).split("val")
        rows = np.linspace(0, len(split) - 1, IMAGES).astype(int).tolist()
        captions = [caption for row in rows for caption in split.captions[row]][:CAPTIONS]
        pixels = [model.image_input.resize(decode_image(split.image(row))) for row in rows]
        return torch.stack(pixels), *pad([model.tokenize(caption) for caption in captions])
    random = torch.Generator().manual_seed(0)
    size = (IMAGES, 3, model.image_input.height, model.image_input.width)
    lengths = (torch.randn(CAPTIONS, generator=random) * 3.5 + 10.8).round().clamp(3, 36).long()  # as in Flickr8k
    tokens = torch.randint(2, len(model.vocabulary), (CAPTIONS, int(lengths.max())), generator=random)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=random), tokens, lengths


def seconds(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-onnx", action="store_true", help="writing the ONNX graphs takes half a minute")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        directory = options.model or Path(folder) / "model"
        if options.model is None:
            config = ModelConfig(ImageEncoderConfig(weights="package"))
            DualEncoder(config, Vocabulary([f"word{number}" for number in range(8000)])).save_pretrained(directory)
        model = DualEncoder.from_pretrained(directory)
        images, tokens, lengths = inputs(model, options.data)
        backends: dict[str, Encoders] = {
            "PyTorch float32, channels first": TorchEncoders(model, channels_last=False, bf16=False),
            "PyTorch float32, channels last": TorchEncoders(model, channels_last=True, bf16=False),
            "PyTorch bf16, channels last": TorchEncoders(model, channels_last=True, bf16=True),
        }
        for precision in reversed(openvino_precisions()):
            graphs = convert_encoders(model)
            backends[f"OpenVINO {precision}"] = OpenVINOBackend(None, precision, threads=options.threads, graphs=graphs)
        if not options.no_onnx:
            few = Sample([np.zeros((32, 32, 3), np.uint8)], ["a dog"], "")
            export_model(str(directory), "onnx", Path(folder) / "onnx", few)
            made = ONNXRuntimeBackend(None, directory=Path(folder) / "onnx", threads=options.threads)
            made.prepare(texts=True)
            backends["ONNX Runtime f32"] = made
        works: dict[str, Callable[[Encoders], Tensor]] = {
            "images": lambda encoders: encoders.encode_images(images),
            "captions": lambda encoders: encoders.encode_tokens(tokens, lengths),
        }
        for what, work in works.items():
            embeddings = {name: work(encoders).numpy() for name, encoders in backends.items()}
            least = dict.fromkeys(backends, float("inf"))
            for _ in range(options.rounds):
                for name, encoders in backends.items():
                    least[name] = min(least[name], seconds(lambda work=work, encoders=encoders: work(encoders)))  # type: ignore[misc]
            reference, *_ = backends
            for name, time_taken in least.items():
                near = cosines(embeddings[name], embeddings[reference])
                rate, ratio = len(embeddings[name]) / time_taken, least[reference] / time_taken
                near_by = f"cosine {near.mean():.6f} on average, {near.min():.6f} at least"
                print(f"{what:9}{name:32}{rate:8.1f}/s {ratio:6.1f} times, {near_by}")


if __name__ == "__main__":
    main()
