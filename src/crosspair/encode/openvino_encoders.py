"""A dual encoder that encodes through OpenVINO: converted as it is loaded, or read from an export."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from crosspair.encode.openvino_conversion import (
    CompiledImageEncoder,
    CompiledTextEncoder,
    Precision,
    convert_image_encoder,
    convert_text_encoder,
    import_openvino,
)
from crosspair.encode.preprocessing import FILE
from crosspair.encode.storage import local_directory, read_model
from crosspair.encode.towers import ImageTower, TextTower
from crosspair.errors import UserError
from crosspair.models.dual_encoder import DualEncoder

if TYPE_CHECKING:
    from openvino import Model

IMAGE_ENCODER, TEXT_ENCODER = "image_encoder", "text_encoder"  # files of an export, and suffix .xml or .onnx


class CompiledEncoders:
    """Both encoders with their projections, for the cores of this machine. Many threads may use it at once."""

    def __init__(
        self, image_encoder: "Model", text_encoder: "Model", precision: Precision, threads: int | None = None
    ) -> None:
        self._encode_images = CompiledImageEncoder(image_encoder, precision, threads)
        self._encode_tokens = CompiledTextEncoder(text_encoder, precision, threads)

    def embed_images(self, images: Tensor) -> Tensor:
        """Resized pictures [b, 3, height, width] -> embeddings float32 [b, dim] of unit length."""
        return torch.from_numpy(self._encode_images(images.numpy()))

    def embed_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens int64 [m, t] padded at the end, lengths int64 [m] -> embeddings float32 [m, dim] of unit length."""
        return torch.from_numpy(self._encode_tokens(tokens.numpy(), lengths.numpy()))


def convert_encoders(model: DualEncoder) -> tuple["Model", "Model"]:
    """The image encoder and the text encoder, with their projections, as OpenVINO graphs.

    Raises UserError where OpenVINO is not installed, or where it lacks an operation of an encoder.
    """
    image_encoder = convert_image_encoder(ImageTower(model), model.image_input, model.config.image.name)
    text_encoder = convert_text_encoder(TextTower(model), model.config.text.name)
    for graph, names in ((image_encoder, ["pixels"]), (text_encoder, ["tokens", "lengths"])):
        for port, name in zip([*graph.inputs, *graph.outputs], [*names, "embeddings"], strict=True):
            port.get_tensor().set_names({name})
    return image_encoder, text_encoder


def load_compiled(name: str, precision: Precision) -> DualEncoder:
    """Of a model's directory, a hub model or an export. Raises UserError when it is none, or unfit for `precision`."""
    if precision not in get_args(Precision):
        raise UserError(f"found precision '{precision}'; expected {' or '.join(sorted(get_args(Precision)))}")
    import_openvino()
    directory = local_directory(name)
    if not (directory / FILE).is_file():
        model = DualEncoder.from_pretrained(name)
        model.compiled = CompiledEncoders(*convert_encoders(model), precision)
        return model
    _check_precision(directory / FILE, precision)
    saved = read_model(str(directory), weights=False)
    with torch.device("meta"):  # settings without weights
        model = DualEncoder(saved.config, saved.vocabulary, saved.image_input, saved.text_encoder())
    model.compiled = CompiledEncoders(*read_encoders(directory), precision)
    return model.eval()


def read_encoders(directory: Path) -> tuple["Model", "Model"]:
    """The graphs of an export to either format. Raises UserError where they are missing or damaged."""
    core = import_openvino().Core()

    def read(name: str) -> Any:
        found = [path for path in (directory / f"{name}.xml", directory / f"{name}.onnx") if path.is_file()]
        try:
            return core.read_model(found[0])
        except (IndexError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1] if found else "it is missing"
            raise UserError(f"can't read {name} of {directory} ({reason}); export the model again") from error

    return read(IMAGE_ENCODER), read(TEXT_ENCODER)


def _check_precision(path: Path, precision: Precision) -> None:
    try:
        unfit: list[str] = json.loads(path.read_text(encoding="utf-8"))["unfit_precisions"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe an export ({error!r}); export the model again") from error
    if precision in unfit:
        raise UserError(f"{path.parent} was found too inexact in {precision} when it was exported; use f32")
