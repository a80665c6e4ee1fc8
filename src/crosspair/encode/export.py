"""A model as files for other runtimes: two graphs, what comes before them, and how near they are to PyTorch.

DIR holds image_encoder and text_encoder (.onnx, or OpenVINO's .xml and .bin), preprocessing.json, config.json, the
vocabulary and README.md; of format huggingface what `save_pretrained` writes.
"""

import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from crosspair.encode.openvino_conversion import (
    Encoders,
    Precision,
    cosines,
    import_openvino,
    openvino_precisions,
    pixel_type,
)
from crosspair.encode.openvino_encoders import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    CompiledEncoders,
    convert_encoders,
    read_encoders,
)
from crosspair.encode.preprocessing import FILE, describe_preprocessing
from crosspair.encode.storage import local_directory, save_model, write_settings
from crosspair.encode.towers import PixelTower, TextTower
from crosspair.errors import UserError
from crosspair.models.dual_encoder import DualEncoder
from crosspair.storage.files import refuse_occupied, whole_directory
from crosspair.version import __version__

Format = Literal["onnx", "openvino", "huggingface"]
LEAST_COSINE: dict[Precision, float] = {"f32": 0.9999, "bf16": 0.999}  # to PyTorch's embeddings in float32
OPSET = 20


@dataclass(frozen=True)
class Sample:
    """What an export is checked on. pictures: as `encode_image` takes them. source: where they are from, in words."""

    images: list[Any]
    captions: list[str]
    source: str


@dataclass(frozen=True)
class Agreement:
    """Cosines of a runtime's embeddings to PyTorch's in float32."""

    mean: float
    least: float
    count: int

    def __str__(self) -> str:
        return f"cosine {self.mean:.6f} on average, {self.least:.6f} at least ({self.count})"


Agreements = dict[Precision, dict[str, Agreement]]  # of pictures and of captions


def export_model(name: str, kind: Format, output: Path, sample: Sample) -> Agreements:
    """Write a model to the new directory `output` and compare it with PyTorch on the sample.

    float32 has to have a cosine of 0.9999 for every picture and caption, bf16 one of 0.999 on average.
    Raises UserError, and writes nothing, where float32 has less, a package is missing or an encoder can't be converted;
    a processor's bf16 that has less is marked in preprocessing.json as not to be used.
    """
    refuse_occupied(output, "the export")
    if kind == "onnx":
        import_onnxruntime()
    elif kind == "openvino":
        import_openvino()
    model = DualEncoder.from_pretrained(name)
    card = local_directory(name) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else _card(model)
    if kind == "huggingface":
        save_model(model, output, text)
        agreements: Agreements = {"f32": _compare(model, DualEncoder.from_pretrained(output), sample)}
        return agreements
    with whole_directory(output) as directory:
        write = _write_onnx if kind == "onnx" else _write_openvino
        write(model, directory)
        agreements = _check_files(model, directory, kind, sample)
        write_settings(model, directory)
        checked: dict[str, Any] = {"on": sample.source}
        checked.update((precision, _plain(found)) for precision, found in agreements.items())
        description = {
            "crosspair": __version__,
            "format": kind,
            **describe_preprocessing(model),
            "checked": checked,
            "unfit_precisions": unfit_precisions(agreements),
        }
        text_of_it = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (directory / FILE).write_text(text_of_it, encoding="utf-8")
        (directory / "README.md").write_text(f"{text.rstrip()}\n{_how_to(kind)}", encoding="utf-8")
    return agreements


def unfit_precisions(agreements: Agreements) -> list[str]:
    """Those below their bound."""
    return [
        precision
        for precision, of_precision in agreements.items()
        if any(found.mean < LEAST_COSINE[precision] for found in of_precision.values())
    ]


def import_onnxruntime() -> Any:
    """The module `onnxruntime`. Raises UserError where it or what writes ONNX is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}; run: pip install 'crosspair[export]'") from error
    return onnxruntime


class OnnxEncoders:
    """Both graphs of an ONNX export, run by ONNX Runtime. As CompiledEncoders."""

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self._image_encoder, self._text_encoder = (
            onnxruntime.InferenceSession(directory / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in (IMAGE_ENCODER, TEXT_ENCODER)
        )

    def embed_images(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._image_encoder.run(None, {"pixels": images.numpy()})[0])

    def embed_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        inputs = {"tokens": tokens.numpy(), "lengths": lengths.numpy()}
        return torch.from_numpy(self._text_encoder.run(None, inputs)[0])


def _write_openvino(model: DualEncoder, directory: Path) -> None:
    openvino = import_openvino()
    for name, graph in zip((IMAGE_ENCODER, TEXT_ENCODER), convert_encoders(model), strict=True):
        openvino.save_model(graph, directory / f"{name}.xml", compress_to_fp16=False)


def _write_onnx(model: DualEncoder, directory: Path) -> None:
    images, captions, words = (torch.export.Dim(name) for name in ("images", "captions", "words"))
    size = (model.image_input.height, model.image_input.width)
    pixels = torch.zeros(2, 3, *size, dtype=pixel_type(model.image_input))
    tokens, lengths = torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 2])
    model.use_channels_last(False)  # a layout that ONNX has no word for
    to_onnx(PixelTower(model), {"pixels": pixels}, ({0: images},), directory / f"{IMAGE_ENCODER}.onnx")
    inputs = {"tokens": tokens, "lengths": lengths}
    to_onnx(TextTower(model), inputs, ({0: captions, 1: words}, {0: captions}), directory / f"{TEXT_ENCODER}.onnx")
    model.use_channels_last(True)


def to_onnx(tower: nn.Module, inputs: dict[str, Tensor], free: tuple[dict[int, Any], ...], path: Path) -> None:
    """Write one graph. free: the axes of each input whose size is left open."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it would explain its steps
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                tower.eval(),
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=free,
                input_names=list(inputs),
                output_names=["embeddings"],
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except Exception as error:  # export raises errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the {path.stem} can't be written as ONNX ({reason}); use another format") from error
    finally:
        log.setLevel(level)


def _check_files(model: DualEncoder, directory: Path, kind: Format, sample: Sample) -> Agreements:
    """Raises UserError where float32 is not near enough."""
    agreements: Agreements = {}
    for precision in openvino_precisions() if kind == "openvino" else cast(list[Precision], ["f32"]):
        encoders: Encoders = (
            OnnxEncoders(directory) if kind == "onnx" else CompiledEncoders(*read_encoders(directory), precision)
        )
        agreements[precision] = _compare(model, encoders, sample)
    for what, found in agreements["f32"].items():
        if not found.least >= LEAST_COSINE["f32"]:
            raise UserError(
                f"{kind} gives other embeddings of {what} than PyTorch: {found}; expected a cosine of "
                f"{LEAST_COSINE['f32']} at least, use another format"
            )
    return agreements


def _compare(model: DualEncoder, other: DualEncoder | Encoders, sample: Sample) -> dict[str, Agreement]:
    def encode(by: DualEncoder) -> list[Tensor]:
        return [by.encode_image(sample.images, 16), by.encode_text(sample.captions)]

    expected = encode(model)
    if isinstance(other, DualEncoder):
        found = encode(other)
    else:
        model.compiled = other
        found = encode(model)
        model.compiled = None
    return {
        what: _agreement(cosines(one.numpy(), two.numpy()))
        for what, one, two in zip(("images", "captions"), found, expected, strict=True)
    }


def _agreement(values: np.ndarray) -> Agreement:
    return Agreement(float(values.mean()), float(values.min()), len(values))


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
    return (
        f"\n## Files for {reader}\n\n"
        f"`{IMAGE_ENCODER}` and `{TEXT_ENCODER}` ({suffix}) give embeddings of unit length, whose dot product is the "
        f"similarity. `{FILE}` says what to do with a picture and a sentence before them, and how near the graphs came "
        "to PyTorch. From Python: "
        '`crosspair.DualEncoder.from_pretrained("DIR", backend="openvino").encode_text(["a dog runs"])`\n'
    )
