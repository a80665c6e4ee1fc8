"""The original's resize: TensorFlow 1's bilinear interpolation on its own grid."""

import torch
from torch import Tensor


def resize_bilinear_tensorflow1(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 or float [3, h, w] to float32 [3, height, width], values in the same range, not rounded.

    Target row i reads the source at i * h / height, without the half-pixel offset and without the low-pass filter that
    today's resizes have: pictures come out shifted by up to half a source pixel, and large ones aliased.
    """
    image = image.float()
    above, below, down = _neighbours(image.shape[1], size[0], image.device)
    left, right, across = _neighbours(image.shape[2], size[1], image.device)

    def blend_columns(rows: Tensor) -> Tensor:
        first = rows[:, :, left]
        return first + (rows[:, :, right] - first) * across

    top = blend_columns(image[:, above])
    return top + (blend_columns(image[:, below]) - top) * down[:, None]


def _neighbours(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two source lines each target line lies between, and its distance from the first, all [target]."""
    position = torch.arange(target, dtype=torch.float32, device=device) * (source / target)
    first = position.floor().long().clamp(max=source - 1)
    return first, (first + 1).clamp(max=source - 1), position - first
