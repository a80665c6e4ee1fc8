"""Backends that encode with a model: the interface of the registered ones, PyTorch, and the choice by exactness."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from crosspair.encode.storage import EXPORT
from crosspair.errors import UserError
from crosspair.models.dual_encoder import TwoTowers
from crosspair.registry import BACKENDS, register_backend

Precision = Literal["bf16", "f32"]
LEAST_COSINE = 0.999  # to the float32 features, on average
SAMPLE = 64  # images it is measured on


class Backend(Protocol):
    """Encodes batches of images and of captions with one model, on a device and in a precision.

    A class that registers under a name is made of a network and one of its `precisions`. It may take over from here
    what fits it; it needs a `name` and the methods that encode.
    """

    name: str  # the setting that chooses it: vectors of one are never taken for those of another
    precisions: ClassVar[tuple[Precision, ...]] = ("f32",)  # the first is what the backend's own name means
    cpu_only: ClassVar[bool] = False
    in_threads: bool = False  # many threads may encode at once, a core each
    images_at_once: int = 64  # what is fast

    @classmethod
    def fast_precisions(cls) -> list[Precision]:
        """Precisions that the setting `auto` tries on this machine, the fastest first."""
        return []

    @classmethod
    def of_export(cls, directory: Path, precision: Precision) -> "Backend":
        """A backend of what `crosspair export` wrote. Raises UserError where the backend can't read it."""
        raise UserError(f"backend {cls.__name__} reads no export; name the model that {directory} was made from")

    def prepare(self, *, texts: bool = False) -> None:
        """Get ready for images and, with `texts`, for captions. Raises UserError where an encoder can't be run."""

    def group(self, views: int = 1) -> int:
        """Images to make features of at a time, which an interruption leaves whole."""
        return self.images_at_once // views

    def image_features(self, images: Tensor, views: int = 1) -> np.ndarray:
        """Resized images [b, 3, height, width] -> float32 [b, views, num_features]; the second view is flipped."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Resized images [b, 3, height, width], values 0..255 -> float32 [b, dim] of unit length, on the CPU."""
        ...

    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens int64 [m, t] padded at the end, lengths int64 [m] -> float32 [m, dim] of unit length, on the CPU."""
        ...


@register_backend("torch")
class TorchBackend(Backend):
    """PyTorch: the network as it is, on its own device.

    precision: the name of its arithmetic. autocast: entered around the image encoder. batch: images in a group.
    """

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
    on_cpu, exact_only = network.device.type == "cpu", precision == "64-true"
    if setting == "auto":
        tried = [kind for kind in (BACKENDS.get("openvino"),) if on_cpu and not exact_only]
        return [*(kind(network, one) for kind in tried for one in kind.fast_precisions()), exact]
    kind, wanted = find_backend(setting)
    if kind is TorchBackend:
        return [exact]
    if exact_only or (kind.cpu_only and not on_cpu):
        raise UserError(
            f"backend {setting} computes on the CPU and not in double precision; found device "
            f"{network.device.type} and precision {precision}: set it to auto or torch"
        )
    return [kind(network, wanted)]  # type: ignore[call-arg]


def find_backend(setting: str) -> tuple[type[Backend], Precision]:
    """The backend and the precision of a setting such as openvino-bf16. Raises UserError for an unknown one."""
    name = backend_name(setting)
    kind: type[Backend] = BACKENDS.get(name)
    return kind, kind.precisions[0] if name == setting else _checked(kind, name, setting.removeprefix(f"{name}-"))


def backend_name(setting: str) -> str:
    """The registered name in a setting, which may have a precision behind it; an unknown setting as it is."""
    name = setting.rpartition("-")[0]
    return name if setting not in BACKENDS and name in BACKENDS else setting


def load_backend(network: TwoTowers, backend: str, precision: Precision) -> Backend | None:
    """The backend that encodes in place of PyTorch; None for PyTorch itself. Raises UserError."""
    kind: type[Backend] = BACKENDS.get(backend)
    _checked(kind, backend, precision)
    if kind is TorchBackend:
        return None
    if kind.cpu_only and network.device.type != "cpu":
        raise UserError(f"backend {backend} computes on the CPU, found device {network.device}; use --device cpu")
    made: Backend = kind(network, precision)  # type: ignore[call-arg]
    made.prepare(texts=True)
    return made


def read_export(directory: Path, backend: str, precision: Precision) -> Backend:
    """The graphs that `crosspair export` wrote. Raises UserError when they are damaged or unfit for `precision`."""
    kind: type[Backend] = BACKENDS.get(backend)
    _checked(kind, backend, precision)
    try:
        unfit: list[str] = json.loads((directory / EXPORT).read_text(encoding="utf-8"))["unfit_precisions"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory / EXPORT} does not describe an export ({error!r}); export the model again"
        ) from error
    if precision in unfit:
        raise UserError(f"{directory} was found too inexact in {precision} when it was exported; use f32")
    return kind.of_export(directory, precision)


def _checked(kind: type[Backend], backend: str, precision: str) -> Precision:
    for known in kind.precisions:
        if precision == known:
            return known
    raise UserError(f"backend {backend} has no precision '{precision}'; expected {' or '.join(kind.precisions)}")


def cosines(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosines between the rows of two arrays [n, d]: float64 [n] in -1..1."""
    first, second = vectors.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    values: np.ndarray = (first * second).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return values
