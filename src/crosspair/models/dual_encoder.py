"""The network: an image encoder and a text encoder, each followed by a projection into one space."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.data.transforms import ImageInput
from crosspair.models.config import ModelConfig
from crosspair.models.projection import adapter_or_all, create_projection
from crosspair.models.text import BiLSTMEncoder

PIXELS_A_THREAD = 125_000  # of the images that a CPU encodes together: 4 of 224 x 224 with two threads


class TwoTowers(nn.Module):
    """Images and token numbers into one space of `config.projection.dim` dimensions.

    image_encoder: normalized pixels [b, 3, height, width] -> [b, num_features], seeing images as `image_input` says.
    text_encoder: tokens [m, t], lengths [m] -> [m, num_features]. Both tell their `num_features`.
    """

    def __init__(
        self, config: ModelConfig, image_encoder: nn.Module, text_encoder: nn.Module, image_input: ImageInput
    ) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = image_encoder
        # Channels last: faster on a CPU (benchmarks/machine.py).
        self.use_channels_last(True)
        self.image_input = image_input
        self.feature_dropout = nn.Dropout(config.image.feature_dropout)
        self.text_encoder = text_encoder
        self.num_image_features: int = image_encoder.num_features  # type: ignore[assignment]
        self.num_text_features: int = text_encoder.num_features  # type: ignore[assignment]
        self.image_projection = create_projection(self.num_image_features, config.projection, "image")
        self.text_projection = create_projection(self.num_text_features, config.projection, "text")
        self._image_encoder_mode: bool | None = None
        self._text_encoder_frozen = False

    def use_channels_last(self, on: bool) -> None:
        """Lay out the image encoder's weights and images channels last, or (on=False) channels first."""
        self._memory_format = torch.channels_last if on else torch.contiguous_format
        self.image_encoder.to(memory_format=self._memory_format)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def images_at_once(self) -> int:
        """The number of images that encode fastest together: 64, on a CPU in PyTorch so few that their maps stay small.

        Maps fall out of its caches otherwise, and from 32 MB on the C library gives them back to the system, which
        clears their pages each time (benchmarks/memory.py).
        """
        if self.device.type != "cpu":
            return 64
        pixels = torch.get_num_threads() * PIXELS_A_THREAD
        return max(1, min(64, pixels // (self.image_input.height * self.image_input.width)))

    def freeze_image_encoder(self, *, freeze_bn_stats: bool = True) -> None:
        """Keep the image encoder's weights, its evaluation mode and its batch-norm statistics.

        freeze_bn_stats: False leaves it in training mode, where batch norm uses and follows each batch (the original).
        """
        self.image_encoder.requires_grad_(False)
        self._image_encoder_mode = False if freeze_bn_stats else None
        self.train(self.training)

    def unfreeze_image_encoder(self, *, freeze_bn_stats: bool = False) -> None:
        """Train the image encoder (its adapters, where it has any).

        freeze_bn_stats: it keeps evaluation mode and its batch-norm statistics.
        """
        for value in adapter_or_all(self.image_encoder):
            value.requires_grad_(True)
        self._image_encoder_mode = False if freeze_bn_stats else None
        self.train(self.training)

    def freeze_text_encoder(self, frozen: bool = True) -> None:
        """Keep the text encoder's weights and its evaluation mode, or (frozen=False) train it (its adapters) again."""
        for value in adapter_or_all(self.text_encoder):
            value.requires_grad_(not frozen)
        if isinstance(self.text_encoder, BiLSTMEncoder):
            self.text_encoder.fix_second_biases()
        self._text_encoder_frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._text_encoder_frozen:
            self.text_encoder.eval()
        if self._image_encoder_mode is not None:
            self.image_encoder.train(self._image_encoder_mode)
        return self

    def image_features(self, images: Tensor) -> Tensor:
        """Resized images [b, 3, height, width], values 0..255 -> the image encoder's features [b, num_features]."""
        pixels = self.image_input.normalize(images, next(self.parameters()).dtype)
        features: Tensor = self.image_encoder(pixels.contiguous(memory_format=self._memory_format))
        return features

    def embed_image_features(self, features: Tensor) -> Tensor:
        """Features [b, num_features] -> embeddings [b, dim], not normalised."""
        return self.image_projection(self.feature_dropout(features))  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode_image_features(self, features: Tensor) -> Tensor:
        """The image encoder's features [b, num_features] -> float32 [b, dim] of unit length, on the CPU."""
        return F.normalize(self.embed_image_features(features.to(self.device)).float(), dim=1).cpu()

    @torch.no_grad()
    def encode_text_features(self, features: Tensor) -> Tensor:
        """The text encoder's features [m, num_features] -> float32 [m, dim] of unit length, on the CPU."""
        return F.normalize(self.embed_text_features(features.to(self.device)).float(), dim=1).cpu()

    def embed_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens int64 [m, t], lengths int64 [m] -> embeddings [m, dim], not normalised."""
        return self.embed_text_features(self.text_encoder(tokens, lengths))

    def embed_text_features(self, features: Tensor) -> Tensor:
        """The text encoder's features [m, num_features] -> embeddings [m, dim], not normalised."""
        return self.text_projection(features)  # type: ignore[no-any-return]

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        images: Tensor | None = None,
        features: Tensor | None = None,
        text_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image embeddings [b, dim] and text embeddings [m, dim], not normalised.

        Give either resized `images` [b, 3, height, width] or, for a frozen image encoder, their `features`; for a
        frozen text encoder `text_features` [m, num_features] stand in for the tokens.
        """
        if (images is None) == (features is None):
            raise ValueError("give either pictures or their features")
        if features is None:
            assert images is not None
            features = self.image_features(images)
        if text_features is None:
            return self.embed_image_features(features), self.embed_tokens(tokens, lengths)
        return self.embed_image_features(features), self.embed_text_features(text_features)
