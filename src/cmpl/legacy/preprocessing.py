"""The original's resize: TensorFlow 1's bilinear interpolation on its own grid."""

import torch
from torch import Tensor


def resize_bilinear_tensorflow1(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 or float [3, h, w] to float32 [3, height, width], values in the same range, not rounded.

    Target row i reads the source at i * h / height, without the half-pixel offset and without the low-pass filter that
    today's resizes have: pictures come out shifted by up to half a source pixel, and large ones aliased.
    """
    picture = picture.float()
    above, below, down = _neighbours(picture.shape[1], size[0], picture.device)
    left, right, across = _neighbours(picture.shape[2], size[1], picture.device)

    def blend_columns(rows: Tensor) -> Tensor:
        first = rows[:, :, left]
        return first + (rows[:, :, right] - first) * across

    top = blend_columns(picture[:, above])
    return top + (blend_columns(picture[:, below]) - top) * down[:, None]


def _neighbours(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two source lines each target line lies between, and its distance from the first, all [target]."""
    position = torch.arange(target, dtype=torch.float32, device=device) * (source / target)
    first = position.floor().long().clamp(max=source - 1)
    return first, (first + 1).clamp(max=source - 1), position - first
