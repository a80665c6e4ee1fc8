"""Layers of the original's image towers: TensorFlow's SAME padding, and a convolution with batch norm."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn


def pad_same(maps: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Feature maps [b, c, h, w] padded as TensorFlow's SAME does, so that ceil(size / stride) windows fit.

    An odd rest goes behind: at stride 2 a 3x3 window on an even size gets nothing before and one after, where PyTorch's
    padding=1 puts one before and shifts every window by a pixel.
    """
    padding: list[int] = []
    for size in (maps.shape[3], maps.shape[2]):  # F.pad starts at the last axis
        windows = -(-size // stride)
        total = max((windows - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(maps, padding, value=value)


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm with scale and offset, no activation: maps [b, c, h, w] to the same.

    norm_decay: share of the old moving statistics that a step keeps, as TensorFlow counts it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        padding: int = 0,
        groups: int = 1,
        norm_epsilon: float,
        norm_decay: float,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=norm_epsilon, momentum=norm_momentum(norm_decay))

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.conv(maps))  # type: ignore[no-any-return]


def norm_momentum(decay: float) -> float:
    """PyTorch's momentum for TensorFlow's decay, which is a float32 there: 0.9997 gives 0.00029999018, not 0.0003."""
    return 1 - float(np.float32(decay))
