"""MobileNet-v1 (Howard et al., 2017) as the original ran it through TF-slim, down to its padding and batch norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.models.slim.layers import ConvNorm, pad_same

NORM_EPSILON = 1e-3
NORM_DECAY = 0.9997

# Channels and stride of the thirteen pairs of depthwise and pointwise convolution.
_PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class SlimMobileNet(nn.Module):
    """Pixels [b, 3, h, w] in -1..1 to features [b, num_features], the mean over the last map.

    depth_multiplier: factor on every layer's channels, at least 8 are kept.
    """

    def __init__(self, depth_multiplier: float = 1.0) -> None:
        super().__init__()

        def channels(full: int) -> int:
            return max(int(full * depth_multiplier), 8)

        width = channels(32)
        self.layers = nn.ModuleDict({"conv2d_0": _conv_norm(3, width, kernel=3, stride=2)})
        for number, (full, stride) in enumerate(_PAIRS, start=1):
            self.layers[f"conv2d_{number}_depthwise"] = _conv_norm(width, width, kernel=3, stride=stride, groups=width)
            self.layers[f"conv2d_{number}_pointwise"] = _conv_norm(width, channels(full), kernel=1)
            width = channels(full)
        self.num_features = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.09, a=-0.18, b=0.18)  # TF-slim's, cut at two deviations

    def forward(self, pixels: Tensor) -> Tensor:
        maps = pixels
        for layer in self.layers.values():
            if layer.conv.stride == (2, 2):
                maps = pad_same(maps, kernel=3, stride=2)
            maps = F.relu6(layer(maps))
        return torch.mean(maps, dim=(2, 3))


def _conv_norm(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> ConvNorm:
    """At stride 1 SAME padding is symmetric and the convolution's own; at stride 2 it depends on the size."""
    padding = kernel // 2 if stride == 1 else 0
    return ConvNorm(
        inputs,
        outputs,
        kernel,
        stride,
        padding=padding,
        groups=groups,
        norm_epsilon=NORM_EPSILON,
        norm_decay=NORM_DECAY,
    )


def slim_mobilenet_v1(depth_multiplier: float = 1.0) -> SlimMobileNet:
    """The original's MobileNet-v1; 1,024 features at the full depth."""
    return SlimMobileNet(depth_multiplier)
