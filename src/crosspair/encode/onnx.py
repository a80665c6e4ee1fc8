"""ONNX: encoders written as graphs that any program can run, and ONNX Runtime that runs them here."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosspair.encode.backends import Backend, Precision
from crosspair.encode.openvino import IMAGE_ENCODER, TEXT_ENCODER
from crosspair.encode.towers import ImageTower, PixelTower, TextTower, pixel_type
from crosspair.errors import UserError
from crosspair.models.dual_encoder import TwoTowers
from crosspair.registry import register_backend

OPSET = 20
_FEATURES = "image_features"


@register_backend("onnxruntime")
class ONNXRuntimeBackend(Backend):
    """A model's encoders as ONNX graphs, run by ONNX Runtime on the CPU in float32.

    network: written as graphs when they are first needed. directory: of an export, in place of a network.
    """

    name = "onnxruntime-f32"
    cpu_only = True

    def __init__(
        self,
        network: TwoTowers | None,
        precision: Precision = "f32",
        *,
        directory: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self._runtime = import_onnxruntime()
        self._network = network
        self._directory = directory
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    @classmethod
    def of_export(cls, directory: Path, precision: Precision) -> Backend:
        made = cls(None, precision, directory=directory)
        made.prepare(texts=True)
        return made

    def prepare(self, *, texts: bool = False) -> None:
        if self._directory is not None:
            for name in (IMAGE_ENCODER, TEXT_ENCODER):
                self._open(name, self._directory)
            return
        assert self._network is not None
        with TemporaryDirectory() as folder, plain_layout(self._network):
            if _FEATURES not in self._sessions:
                write_image_graph(self._network, self._network.image_encoder, Path(folder) / f"{_FEATURES}.onnx")
                self._open(_FEATURES, Path(folder))
            if texts and TEXT_ENCODER not in self._sessions:
                write_text_graph(self._network, Path(folder) / f"{TEXT_ENCODER}.onnx")
                self._open(TEXT_ENCODER, Path(folder))

    def group(self, views: int = 1) -> int:
        return self.images_at_once // views

    def image_features(self, images: Tensor, views: int = 1) -> np.ndarray:
        seen = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1) if views == 2 else images
        features: np.ndarray = self._run(_FEATURES, pixels=seen).reshape(len(images), views, -1)
        return features

    def encode_images(self, images: Tensor) -> Tensor:
        if self._network is None:
            return torch.from_numpy(self._run(IMAGE_ENCODER, pixels=images))
        return self._network.encode_image_features(torch.from_numpy(self.image_features(images)[:, 0]))

    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return torch.from_numpy(self._run(TEXT_ENCODER, tokens=tokens, lengths=lengths))

    def _open(self, name: str, directory: Path) -> None:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads or torch.get_num_threads()
        path = directory / f"{name}.onnx"
        try:
            self._sessions[name] = self._runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no base but this
            reason = str(error).strip().splitlines()[-1] if path.is_file() else "it is missing"
            raise UserError(f"can't read {name} of {directory} ({reason}); export the model again") from error

    def _run(self, name: str, **inputs: Tensor) -> np.ndarray:
        found: np.ndarray = self._sessions[name].run(None, {key: value.numpy() for key, value in inputs.items()})[0]
        return found


def import_onnxruntime() -> Any:
    """The module `onnxruntime`. Raises UserError where it or what writes ONNX is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}; run: pip install 'crosspair[export]'") from error
    return onnxruntime


def write_onnx(network: TwoTowers, directory: Path) -> None:
    """Write both encoders with their projections as image_encoder.onnx and text_encoder.onnx."""
    with plain_layout(network):
        write_image_graph(network, ImageTower(network), directory / f"{IMAGE_ENCODER}.onnx")
        write_text_graph(network, directory / f"{TEXT_ENCODER}.onnx")


@contextmanager
def plain_layout(network: TwoTowers) -> Iterator[None]:
    """A context without channels last, a layout that ONNX doesn't have."""
    network.use_channels_last(False)
    try:
        yield
    finally:
        network.use_channels_last(True)


def write_image_graph(network: TwoTowers, encoder: nn.Module, path: Path) -> None:
    """Write an encoder of normalized pixels as a graph: resized images [images, 3, height, width] -> [images, d]."""
    expected = network.image_input
    pixels = torch.zeros(2, 3, expected.height, expected.width, dtype=pixel_type(expected))
    to_onnx(PixelTower(encoder, expected), {"pixels": pixels}, ({0: torch.export.Dim("images")},), path)


def write_text_graph(network: TwoTowers, path: Path) -> None:
    """tokens [captions, words], lengths [captions] -> embeddings [captions, dim] of unit length."""
    captions, words = torch.export.Dim("captions"), torch.export.Dim("words")
    inputs = {"tokens": torch.ones(2, 3, dtype=torch.int64), "lengths": torch.tensor([3, 2])}
    to_onnx(TextTower(network), inputs, ({0: captions, 1: words}, {0: captions}), path)


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
