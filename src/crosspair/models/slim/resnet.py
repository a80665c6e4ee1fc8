"""ResNet-v1 (He et al., 2015) as the original ran it through TF-slim, down to its padding and stride placement.

Where torchvision's ResNet differs, in order of effect on the features: the stride of a stage sits in its last unit, on
the 3x3 convolution, with a plain subsampled shortcut; the first max pool is padded behind only; the batch norm decays
slower.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.models.slim.layers import ConvNorm, pad_same

NORM_EPSILON = 1e-5
NORM_DECAY = 0.997


class Unit(NamedTuple):
    """One bottleneck: channels out, channels of the two inner convolutions, stride of the 3x3 one."""

    depth: int
    bottleneck_depth: int
    stride: int


class Bottleneck(nn.Module):
    """Maps [b, inputs, h, w] to [b, depth, h / stride, w / stride]: 1x1, 3x3, 1x1 and a shortcut."""

    def __init__(self, inputs: int, unit: Unit) -> None:
        super().__init__()
        self.stride = unit.stride
        self.conv1 = _conv_norm(inputs, unit.bottleneck_depth, kernel=1)
        self.conv2 = _conv_norm(unit.bottleneck_depth, unit.bottleneck_depth, kernel=3, stride=unit.stride)
        self.conv3 = _conv_norm(unit.bottleneck_depth, unit.depth, kernel=1)
        self.shortcut = None if inputs == unit.depth else _conv_norm(inputs, unit.depth, kernel=1, stride=unit.stride)

    def forward(self, maps: Tensor) -> Tensor:
        if self.shortcut is None:
            shortcut = maps[:, :, :: self.stride, :: self.stride]
        else:
            shortcut = self.shortcut(maps)
        residual = self.conv3(F.relu(self.conv2(F.relu(self.conv1(maps)))))
        return F.relu(shortcut + residual)


class SlimResNet(nn.Module):
    """Pixels [b, 3, h, w], 0..255 less the mean colour, to features [b, num_features], the mean over the last map.

    blocks: the units of each of the stages, which are called block1, block2, ...
    """

    def __init__(self, blocks: Sequence[Sequence[Unit]]) -> None:
        super().__init__()
        self.conv1 = _conv_norm(3, 64, kernel=7, stride=2)
        self.blocks = nn.ModuleDict()
        inputs = 64
        for number, units in enumerate(blocks, start=1):
            block = nn.Sequential()
            for unit_number, unit in enumerate(units, start=1):
                block.add_module(f"unit_{unit_number}", Bottleneck(inputs, unit))
                inputs = unit.depth
            self.blocks[f"block{number}"] = block
        self.num_features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = F.relu(self.conv1(pixels))
        maps = F.max_pool2d(pad_same(maps, kernel=3, stride=2, value=-torch.inf), kernel_size=3, stride=2)
        for block in self.blocks.values():
            maps = block(maps)
        return torch.mean(maps, dim=(2, 3))


def _conv_norm(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> ConvNorm:
    return ConvNorm(
        inputs, outputs, kernel, stride, padding=kernel // 2, norm_epsilon=NORM_EPSILON, norm_decay=NORM_DECAY
    )


def _bottleneck_stages(units_per_stage: Sequence[int]) -> SlimResNet:
    """Four stages of 256, 512, 1024 and 2048 channels; all but the last halve the map, in their last unit."""
    blocks = []
    for stage, units in enumerate(units_per_stage):
        bottleneck_depth = 64 * 2**stage
        last_stride = 1 if stage == 3 else 2
        block = [Unit(4 * bottleneck_depth, bottleneck_depth, stride=1)] * (units - 1)
        blocks.append([*block, Unit(4 * bottleneck_depth, bottleneck_depth, last_stride)])
    return SlimResNet(blocks)


def slim_resnet_v1_50() -> SlimResNet:
    """The original's ResNet-50 generator; 2,048 features."""
    return _bottleneck_stages([3, 4, 6, 3])


def slim_resnet_v1_101() -> SlimResNet:
    """The original's ResNet-101 generator; 2,048 features."""
    return _bottleneck_stages([3, 4, 23, 3])


def slim_resnet_v1_152() -> SlimResNet:
    """The original's ResNet-152; 2,048 features."""
    return _bottleneck_stages([3, 8, 36, 3])
