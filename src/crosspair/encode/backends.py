"""Encoding backends: PyTorch, OpenVINO and ONNX Runtime, and the choice of the fastest one that is exact enough."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from crosspair.encode.onnx import ONNXRuntimeBackend, import_onnxruntime
from crosspair.encode.openvino import OpenVINOBackend, Precision, import_openvino, openvino_precisions, read_graphs
from crosspair.encode.storage import EXPORT
from crosspair.errors import UserError
from crosspair.models.dual_encoder import TwoTowers

BackendName = Literal["torch", "openvino", "onnxruntime"]
LEAST_COSINE = 0.999  # to the float32 features, on average
SAMPLE = 64  # images it is measured on


class Backend(Protocol):
    """Encodes batches of images and of captions with one model, on a device and in a precision."""

    name: str  # of the arithmetic: vectors of one are never taken for those of another
    in_threads: bool  # many threads may encode at once, a core each
    images_at_once: int  # what is fast

    def prepare(self, *, texts: bool = False) -> None:
        """Get ready for images and, with `texts`, for captions. Raises UserError where an encoder can't be run."""

    def group(self, views: int = 1) -> int:
        """Images to make features of at a time, which an interruption leaves whole."""

    def image_features(self, images: Tensor, views: int = 1) -> np.ndarray:
        """Resized images [b, 3, height, width] -> float32 [b, views, num_features]; the second view is flipped."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Resized images [b, 3, height, width], values 0..255 -> float32 [b, dim] of unit length, on the CPU."""

    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens int64 [m, t] padded at the end, lengths int64 [m] -> float32 [m, dim] of unit length, on the CPU."""


class TorchBackend:
    """The network as it is, on its own device.

    precision: the name of its arithmetic. autocast: entered around the image encoder. batch: images in a group.
    """

    in_threads = False

    def __init__(
        self,
        network: TwoTowers,
        precision: str = "32-true",
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        batch: int = 64,
    ) -> None:
        self.name = precision
        self.images_at_once = network.images_at_once
        self._network = network
        self._autocast = autocast
        self._batch = batch

    def prepare(self, *, texts: bool = False) -> None:
        self._network.image_encoder.eval()

    def group(self, views: int = 1) -> int:
        return self._batch

    def image_features(self, images: Tensor, views: int = 1) -> np.ndarray:
        images = images.to(self._network.device)
        with torch.inference_mode(), self._autocast():
            seen = [self._features(images.flip(-1) if view else images) for view in range(views)]
            features: np.ndarray = torch.stack(seen, dim=1).float().cpu().numpy()
        return features

    def _features(self, images: Tensor) -> Tensor:
        parts = torch.split(images, self.images_at_once)
        return torch.cat([self._network.image_features(part) for part in parts])

    def encode_images(self, images: Tensor) -> Tensor:
        return self._network.encode_image_features(self._network.image_features(images.to(self._network.device)))

    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        features = self._network.text_encoder(tokens.to(self._network.device), lengths)
        return self._network.encode_text_features(features)


@dataclass(frozen=True)
class Agreement:
    """Cosines of a backend's vectors to PyTorch's in float32."""

    mean: float
    least: float
    count: int

    @classmethod
    def of(cls, vectors: np.ndarray, reference: np.ndarray) -> "Agreement":
        """The agreement of the rows of two arrays [n, d]."""
        found = cosines(vectors, reference)
        return cls(float(found.mean()), float(found.min()), len(found))

    def __str__(self) -> str:
        return f"cosine {self.mean:.6f} on average, {self.least:.6f} at least ({self.count})"


def agreement_on(images: Tensor, backend: Backend, network: TwoTowers) -> Agreement:
    """The agreement of a prepared backend's features with PyTorch's, on resized images [b, 3, height, width]."""
    exact = TorchBackend(network)
    exact.prepare()
    return Agreement.of(backend.image_features(images)[:, 0], exact.image_features(images)[:, 0])


def choose_backend(
    network: TwoTowers,
    setting: str,
    measure: Callable[[Backend], Agreement] | None,
    *,
    precision: str = "32-true",
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    tell: Callable[[str], object] = lambda line: None,
) -> Backend:
    """The backend for features of images: `setting` is auto, torch, openvino-bf16, openvino-f32 or onnxruntime-f32.

    auto takes the fastest whose agreement is at least 0.999 on average. measure: of a backend, which it may have to
    prepare; None takes what is asked for as it is. precision, autocast: of PyTorch. tell: is given what was measured.
    Raises UserError for a backend that can't be had, or can't do what `precision` says.
    """
    *others, last = backends_for(network, setting, precision, autocast)
    for backend in [*others, last]:
        if isinstance(backend, TorchBackend) and backend.name == precision:
            backend.prepare()
            return backend
        try:
            if measure is None:
                backend.prepare()
                return backend
            seen = measure(backend)
        except UserError as error:
            if setting != "auto":
                raise
            tell(f"not encoding images by {backend.name}: {error}")
            continue
        if setting != "auto" or seen.mean >= LEAST_COSINE:
            tell(f"encoding images by {backend.name}: {seen}")
            return backend
        expected = f"expected {LEAST_COSINE} on average; trying a more exact way"
        tell(f"not encoding images by {backend.name}: {seen}, {expected}")
    return last


def backends_for(
    network: TwoTowers, setting: str, precision: str, autocast: Callable[[], AbstractContextManager[object]]
) -> list[Backend]:
    """The backends that a setting admits here, the fastest first."""
    exact = TorchBackend(network, precision, autocast)
    fits = network.device.type == "cpu" and precision != "64-true"
    if setting == "auto":
        return [*(OpenVINOBackend(network, one) for one in openvino_precisions() if fits), exact]
    if setting == "torch":
        return [exact]
    if not fits:
        raise UserError(
            f"backend {setting} computes on the CPU and not in double precision; found device "
            f"{network.device.type} and precision {precision}: set it to auto or torch"
        )
    if setting == "onnxruntime-f32":
        return [ONNXRuntimeBackend(network)]
    import_openvino()
    return [OpenVINOBackend(network, "bf16" if setting == "openvino-bf16" else "f32")]


def load_backend(network: TwoTowers, backend: BackendName, precision: Precision) -> Backend | None:
    """The backend that encodes in place of PyTorch; None for PyTorch itself. Raises UserError."""
    _check(backend, precision)
    if backend == "torch":
        return None
    if network.device.type != "cpu":
        raise UserError(f"backend {backend} computes on the CPU, found device {network.device}; use --device cpu")
    made = OpenVINOBackend(network, precision) if backend == "openvino" else ONNXRuntimeBackend(network)
    made.prepare(texts=True)
    return made


def read_export(directory: Path, backend: BackendName, precision: Precision) -> Backend:
    """The graphs that `crosspair export` wrote. Raises UserError when they are damaged or unfit for `precision`."""
    _check(backend, precision)
    if backend == "openvino":
        import_openvino()
    else:
        import_onnxruntime()
    try:
        unfit: list[str] = json.loads((directory / EXPORT).read_text(encoding="utf-8"))["unfit_precisions"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory / EXPORT} does not describe an export ({error!r}); export the model again"
        ) from error
    if precision in unfit:
        raise UserError(f"{directory} was found too inexact in {precision} when it was exported; use f32")
    if backend == "openvino":
        return OpenVINOBackend(None, precision, graphs=read_graphs(directory))
    made = ONNXRuntimeBackend(None, directory=directory)
    made.prepare(texts=True)
    return made


def _check(backend: str, precision: str) -> None:
    if backend not in get_args(BackendName) or (backend != "openvino" and precision != "f32"):
        raise UserError(
            f"found backend '{backend}' and precision '{precision}'; expected torch or onnxruntime with f32, or "
            "openvino with f32 or bf16"
        )
    if precision not in get_args(Precision):
        raise UserError(f"found precision '{precision}'; expected {' or '.join(sorted(get_args(Precision)))}")


def cosines(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosines between the rows of two arrays [n, d]: float64 [n] in -1..1."""
    first, second = vectors.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    values: np.ndarray = (first * second).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return values
