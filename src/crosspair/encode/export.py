"""Export of a model for other backends: two graphs, their preprocessing, and their agreement with PyTorch.

DIR holds image_encoder and text_encoder (.onnx, or OpenVINO's .xml and .bin), preprocessing.json, config.json, the
vocabulary and README.md; of format huggingface what `save_pretrained` writes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from crosspair.data.tokens import PADDING, UNKNOWN, SubwordTokenizer, Vocabulary, word_rules
from crosspair.data.transforms import ImageInput
from crosspair.devices import find_device
from crosspair.encode.backends import Agreement, Precision, read_export
from crosspair.encode.locate import locate
from crosspair.encode.model import DualEncoder
from crosspair.encode.onnx import import_onnxruntime, write_onnx
from crosspair.encode.openvino import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    import_openvino,
    openvino_precisions,
    write_openvino,
)
from crosspair.encode.storage import EXPORT, save_model, write_settings
from crosspair.errors import UserError
from crosspair.models.config import ModelConfig, TextEncoderConfig
from crosspair.storage.files import refuse_occupied, whole_directory
from crosspair.version import __version__

Format = Literal["onnx", "openvino", "huggingface"]
LEAST_COSINE: dict[Precision, float] = {"f32": 0.9999, "bf16": 0.999}  # to PyTorch's embeddings in float32


@dataclass(frozen=True)
class Sample:
    """What an export is checked on. images: as `encode_image` takes them. source: where they are from, in words."""

    images: list[Any]
    captions: list[str]
    source: str


Agreements = dict[Precision, dict[str, Agreement]]  # of images and of captions


def export_model(name: str, kind: Format, output: Path, sample: Sample, *, device: str = "auto") -> Agreements:
    """Write a model to the new directory `output` and compare it with PyTorch on the sample.

    device: that PyTorch computes on for the comparison: auto, cpu, cuda, cuda:N or mps.
    float32 has to have a cosine of 0.9999 for every image and caption, bf16 one of 0.999 on average.
    Raises UserError, and writes nothing, where float32 has less, a package is missing or an encoder can't be converted;
    a processor's bf16 that has less is marked in preprocessing.json as not to be used.
    """
    found = find_device(device)
    refuse_occupied(output, "the export")
    if kind == "onnx":
        import_onnxruntime()
    elif kind == "openvino":
        import_openvino()
    files = locate(name)
    if files.is_pair:
        raise UserError(
            f"{name} is a ready-made pair of {files.library}, which is not exported; export it with its own "
            "library, or name a model that crosspair wrote"
        )
    model = DualEncoder.from_pretrained(name, device="cpu")
    card = files.directory / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else _card(model)
    if kind == "huggingface":
        save_model(model.saved(card=text), output)
        again = DualEncoder.from_pretrained(output, device=device)
        agreements: Agreements = {"f32": _compare(_encode(again, sample), _encode(model.to(found), sample))}
        return agreements
    with whole_directory(output) as directory:
        write = write_onnx if kind == "onnx" else write_openvino
        write(model, directory)
        (directory / EXPORT).write_text(json.dumps({"unfit_precisions": []}), encoding="utf-8")  # until it is known
        agreements = _check_files(model.to(found), directory, kind, sample)
        saved = model.saved()
        write_settings(saved, directory)
        checked: dict[str, Any] = {"on": sample.source}
        checked.update((precision, _plain(found)) for precision, found in agreements.items())
        description = {
            "crosspair": __version__,
            "format": kind,
            **describe_preprocessing(saved.config, saved.image_input, saved.vocabulary),
            "checked": checked,
            "unfit_precisions": unfit_precisions(agreements),
        }
        text_of_it = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (directory / EXPORT).write_text(text_of_it, encoding="utf-8")
        (directory / "README.md").write_text(f"{text.rstrip()}\n{_how_to(kind)}", encoding="utf-8")
    return agreements


def unfit_precisions(agreements: Agreements) -> list[str]:
    """Precisions whose agreement with PyTorch is below their bound."""
    return [
        precision
        for precision, of_precision in agreements.items()
        if any(found.mean < LEAST_COSINE[precision] for found in of_precision.values())
    ]


def _check_files(model: DualEncoder, directory: Path, kind: Format, sample: Sample) -> Agreements:
    """Raises UserError where float32 is not near enough."""
    agreements: Agreements = {}
    backend = "onnxruntime" if kind == "onnx" else "openvino"
    expected = _encode(model, sample)
    for precision in openvino_precisions() if kind == "openvino" else cast(list[Precision], ["f32"]):
        model.backend = read_export(directory, backend, precision)
        agreements[precision] = _compare(_encode(model, sample), expected)
        model.backend = None
    for what, found in agreements["f32"].items():
        if not found.least >= LEAST_COSINE["f32"]:
            raise UserError(
                f"{kind} gives other embeddings of {what} than PyTorch: {found}; expected a cosine of "
                f"{LEAST_COSINE['f32']} at least, use another format"
            )
    return agreements


def _encode(model: DualEncoder, sample: Sample) -> list[Tensor]:
    return [model.encode_image(sample.images, 16), model.encode_text(sample.captions)]


def _compare(found: list[Tensor], expected: list[Tensor]) -> dict[str, Agreement]:
    return {
        what: Agreement.of(one.numpy(), two.numpy())
        for what, one, two in zip(("images", "captions"), found, expected, strict=True)
    }


def describe_preprocessing(
    config: ModelConfig, image_input: ImageInput, vocabulary: Vocabulary | SubwordTokenizer
) -> dict[str, Any]:
    """Preprocessing as JSON: from an image's file and a sentence to the graphs' inputs, and their outputs."""
    return {
        "image_encoder": {
            "image": "RGB; upright, by its EXIF orientation; transparency over white",
            "resize": _resize(image_input),
            "inputs": {
                "pixels": {
                    "type": "float32" if image_input.resample == "tensorflow1" else "uint8",
                    "shape": ["images", 3, image_input.height, image_input.width],
                    "values": "0..255",
                }
            },
            "in_the_graph": {
                "normalize": "(value / 255 - mean) / std of each colour",
                "mean": image_input.mean,
                "std": image_input.std,
            },
        },
        "text_encoder": {
            "tokenizer": _tokenizer(config.text, vocabulary),
            "inputs": {
                "tokens": {
                    "type": "int64",
                    "shape": ["captions", "words"],
                    "values": f"numbers of the tokens; behind a caption's end {PADDING}",
                },
                "lengths": {"type": "int64", "shape": ["captions"], "values": "numbers of tokens, 1 at least"},
            },
        },
        "output": {
            "embeddings": {"type": "float32", "shape": ["images or captions", config.projection.dim]},
            "length": 1.0,
            "similarity": "dot product",
        },
    }


def _resize(image_input: ImageInput) -> dict[str, Any]:
    size = {"height": image_input.height, "width": image_input.width, "keep_aspect_ratio": False}
    if image_input.resample == "tensorflow1":
        rule = "value at (y * h / height, x * w / width) of the corners' grid, as TensorFlow 1's resize_bilinear"
        return {**size, "interpolation": "bilinear", "antialias": False, "grid": rule, "rounded": False}
    return {**size, "interpolation": "bilinear", "antialias": True, "grid": "half pixels", "rounded": True}


def _tokenizer(text: TextEncoderConfig, vocabulary: Vocabulary | SubwordTokenizer) -> dict[str, Any]:
    if not isinstance(vocabulary, Vocabulary):
        longest = min(text.max_words, vocabulary.longest)
        kind = {"kind": "Hugging Face tokenizers", "file": vocabulary.FILE, "max_tokens": longest}
        return {**kind, "filled_with": vocabulary.filler} if vocabulary.fixed_length else kind
    return {
        "kind": "words",
        "file": vocabulary.FILE,
        **word_rules(text.tokenizer, text.special_tokens, text.max_words),
        "first_line_has_number": len(vocabulary) - len(vocabulary.words),
        "unknown_word": UNKNOWN,
        "without_a_word": [UNKNOWN],
    }


def _plain(agreements: dict[str, Agreement]) -> dict[str, dict[str, float]]:
    return {what: asdict(found) for what, found in agreements.items()}


def _card(model: DualEncoder) -> str:
    config = model.config
    return (
        "---\nlibrary_name: crosspair\ntags: [image-text-matching]\n---\n\n# Image-text matcher\n\n"
        f"Image encoder {config.image.name}, text encoder {config.text.name}, {config.projection.dim} dimensions.\n"
    )


def _how_to(kind: Format) -> str:
    suffix, reader = (".onnx", "ONNX Runtime") if kind == "onnx" else (".xml and .bin", "OpenVINO")
    backend = "onnxruntime" if kind == "onnx" else "openvino"
    return (
        f"\n## Files for {reader}\n\n"
        f"`{IMAGE_ENCODER}` and `{TEXT_ENCODER}` ({suffix}) give embeddings of unit length, whose dot product is the "
        f"similarity. `{EXPORT}` says what to do with a picture and a sentence before them, and how near the graphs "
        "came to PyTorch. From Python: "
        f'`crosspair.DualEncoder.from_pretrained("DIR", backend="{backend}").encode_text(["a dog runs"])`\n'
    )
