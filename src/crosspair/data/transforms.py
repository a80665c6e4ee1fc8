"""Decoded pictures to the encoder's input: one resize for training and for serving, and training's augmentation.

Pictures stay uint8 until they are on the device; `normalize` is the last step and runs there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F


@dataclass
class ImageInput:
    """What the image encoder expects to see."""

    height: int = 224  # pixels
    width: int = 224  # pixels
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # of red, green, blue in 0..1
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])  # of red, green, blue in 0..1
    resample: Literal["antialias", "tensorflow1"] = "antialias"  # tensorflow1: bilinear as the original resized

    def resize(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w] squashed to [3, height, width]; the aspect ratio is not kept, as in the paper."""
        if self.resample == "tensorflow1":
            from crosspair.data.tensorflow_resize import resize_bilinear_tensorflow1

            return resize_bilinear_tensorflow1(image, (self.height, self.width))
        if image.shape[-2:] == (self.height, self.width):
            return image
        return F.resize(image, [self.height, self.width], antialias=True)

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values 0..255 [b, 3, h, w] as (value / 255 - mean) / std."""
        mean = torch.tensor(self.mean, dtype=dtype, device=images.device)[:, None, None]
        std = torch.tensor(self.std, dtype=dtype, device=images.device)[:, None, None]
        return (images.to(dtype) / 255 - mean) / std


def random_crop(image: Tensor, smallest: float, uniform: Sequence[float]) -> Tensor:
    """A box of `smallest` to 1 of the area and nearly the picture's own aspect ratio, at a random place.

    picture [3, h, w]; uniform: four numbers in 0..1 that decide, so that the caller owns the randomness.
    """
    height, width = image.shape[-2:]
    area = smallest + (1 - smallest) * uniform[0]
    stretch = (4 / 3) ** (uniform[1] - 0.5)  # the box's own aspect ratio differs by up to 15 % from the picture's
    crop_height = max(1, min(height, round(height * (area / stretch) ** 0.5)))
    crop_width = max(1, min(width, round(width * (area * stretch) ** 0.5)))
    top = int(uniform[2] * (height - crop_height + 1))
    left = int(uniform[3] * (width - crop_width + 1))
    return image[:, top : top + crop_height, left : left + crop_width]
