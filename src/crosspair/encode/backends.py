"""What computes a frozen encoder's features: PyTorch, or on a CPU OpenVINO, whose features are checked against it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from crosspair.data.images import decode_image
from crosspair.encode.openvino_conversion import (
    REQUEST,
    CompiledImageEncoder,
    Precision,
    convert_image_encoder,
    cosines,
    import_openvino,
    openvino_precisions,
)
from crosspair.errors import UserError
from crosspair.models.dual_encoder import DualEncoder

if TYPE_CHECKING:
    from crosspair.data.dataset import Split

LEAST_COSINE = 0.999  # to the float32 features, on average
SAMPLE = 64  # pictures it is measured on


class FeatureBackend(Protocol):
    """Computes features in groups of pictures, which an interruption leaves whole."""

    name: str  # of the arithmetic: features of one are never taken for those of another
    in_threads: bool  # many threads may encode at once, a core each

    def prepare(self) -> None:
        """Made ready before `encode` is called. Raises UserError where the encoder can't be run."""

    def group(self, views: int) -> int:
        """Pictures to encode at a time."""

    def encode(self, images: Tensor, views: int) -> np.ndarray:
        """Resized pictures [b, 3, height, width] -> float32 [b, views, num_features]; the second view is mirrored."""


class TorchBackend:
    """The encoder as it is, on its own device."""

    in_threads = False

    def __init__(
        self,
        model: DualEncoder,
        precision: str,
        autocast: Callable[[], AbstractContextManager[object]],
        batch: int = 64,
    ) -> None:
        self.name = precision
        self._model = model
        self._autocast = autocast
        self._batch = batch

    def prepare(self) -> None:
        self._model.image_encoder.eval()

    def group(self, views: int) -> int:
        return self._batch

    def encode(self, images: Tensor, views: int) -> np.ndarray:
        images = images.to(self._model.device)
        with torch.inference_mode(), self._autocast():
            seen = [self._features(images.flip(-1) if view else images) for view in range(views)]
            features: np.ndarray = torch.stack(seen, dim=1).float().cpu().numpy()
        return features

    def _features(self, images: Tensor) -> Tensor:
        parts = torch.split(images, self._model.images_at_once)
        return torch.cat([self._model.image_features(part) for part in parts])


class OpenVINOBackend:
    """The encoder compiled for the CPU, when it is first needed."""

    in_threads = True

    def __init__(self, model: DualEncoder, precision: Precision) -> None:
        self.name = f"openvino-{precision}"
        self._model = model
        self._precision: Precision = precision
        self._compiled: CompiledImageEncoder | None = None

    def prepare(self) -> None:
        if self._compiled is None:
            graph = convert_image_encoder(self._model.image_encoder, self._model.image_input)
            self._compiled = CompiledImageEncoder(graph, self._precision)

    def group(self, views: int) -> int:
        return REQUEST // views

    def encode(self, images: Tensor, views: int) -> np.ndarray:
        assert self._compiled is not None
        seen = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1) if views == 2 else images
        features: np.ndarray = self._compiled(seen.numpy()).reshape(len(images), views, -1)
        return features


@dataclass(frozen=True)
class Exactness:
    """Cosines of a runtime's features to PyTorch's in float32, on a sample of pictures."""

    mean: float
    least: float
    images: int

    def __str__(self) -> str:
        return f"cosine to float32 {self.mean:.5f} on average, {self.least:.5f} at least ({self.images} pictures)"


def measure_exactness(backend: FeatureBackend, model: DualEncoder, split: "Split") -> Exactness:
    """Of a runtime that is prepared, on evenly spaced pictures of the split."""
    rows = np.unique(np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int))
    return exactness_on(load_resized(model, split, [int(row) for row in rows]), backend, model)


def exactness_on(images: Tensor, backend: FeatureBackend, model: DualEncoder) -> Exactness:
    """Of a runtime that is prepared, on resized pictures [b, 3, height, width]."""
    exact = TorchBackend(model, "32-true", nullcontext)
    exact.prepare()
    found = cosines(backend.encode(images, 1)[:, 0], exact.encode(images, 1)[:, 0])
    return Exactness(float(found.mean()), float(found.min()), len(images))


def load_resized(model: DualEncoder, split: "Split", rows: "list[int] | range") -> Tensor:
    """Pictures [b, 3, height, width] as the encoder's input has them, not normalised."""
    decoded = (decode_image(split.image(row), split.image_ids[row]) for row in rows)
    return torch.stack([model.image_input.resize(image) for image in decoded])


def feature_backends(
    model: DualEncoder, setting: str, precision: str, autocast: Callable[[], AbstractContextManager[object]]
) -> list[FeatureBackend]:
    """The runtimes that a recipe's `feature_backend` admits here, the fastest first.

    Raises UserError when OpenVINO is asked for by name and can't be had, or can't do what the recipe says.
    """
    exact = TorchBackend(model, precision, autocast)
    fits = model.device.type == "cpu" and precision != "64-true"
    if setting == "auto":
        return [*(OpenVINOBackend(model, one) for one in openvino_precisions() if fits), exact]
    if setting == "torch":
        return [exact]
    if not fits:
        raise UserError(
            f"feature_backend {setting} computes on the CPU and not in double precision; found device "
            f"{model.device.type} and precision {precision}: set feature_backend to auto or torch"
        )
    import_openvino()
    return [OpenVINOBackend(model, "bf16" if setting == "openvino-bf16" else "f32")]
