"""Tiny models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cmpl.data.text import Vocabulary
from cmpl.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig
from cmpl.models.dual_encoder import DualEncoder

WORDS = ["a", "dog", "runs", "the", "cat", "sleeps", "red", "blue"]


@pytest.fixture
def tiny_model() -> Callable[..., DualEncoder]:
    """A dual encoder of some 400,000 weights that reads 32 x 32 pixels; its settings are changed by part."""

    def create(
        *,
        image: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        projection: dict[str, Any] | None = None,
    ) -> DualEncoder:
        torch.manual_seed(0)
        config = ModelConfig(
            ImageEncoderConfig(**{"name": "test_resnet", "weights": "none", "size": [32, 32], **(image or {})}),
            TextEncoderConfig(**{"word_dim": 8, "hidden_dim": 8, **(text or {})}),
            ProjectionConfig(**{"dim": 8, **(projection or {})}),
        )
        return DualEncoder(config, Vocabulary(WORDS))

    return create


class Pooled(nn.Module):
    """An image encoder that shows what reaches it: mean colours, with one trainable weight and a batch norm."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.norm(pixels).mean(dim=(2, 3))


@pytest.fixture
def pooled() -> Callable[[], Pooled]:
    return Pooled
