"""Image encoders made of others: several side by side, and one with its lower stages' features."""

from typing import Any

import torch
from torch import Tensor, nn


class JoinedEncoders(nn.Module):
    """Several encoders that see the same image: their features beside each other, [b, sum of num_features]."""

    def __init__(self, encoders: list[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.num_features = sum(encoder.num_features for encoder in encoders)  # type: ignore[misc]

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([encoder(pixels) for encoder in self.encoders], dim=1)


class PooledStages(nn.Module):
    """A `timm` model's features with the mean of each of its last stages' maps beside them.

    Lower stages keep what the last one drops on the way to its classes: colours, textures, parts.
    """

    def __init__(self, encoder: nn.Module, stages: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages = stages
        described: Any = encoder.feature_info
        channels = [stage["num_chs"] for stage in described][-stages:]
        self.num_features = encoder.num_features + sum(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        encoder: Any = self.encoder
        last, maps = encoder.forward_intermediates(pixels, indices=self.stages)
        return torch.cat([encoder.forward_head(last), *(each.mean(dim=(2, 3)) for each in maps)], dim=1)
