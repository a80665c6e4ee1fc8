"""Decoded images to the encoder's input: one resize for training and for serving, and training's augmentation.

Images stay uint8 until they are on the device; `normalize` is the last step and runs there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from crosspair.settings import Range

_PIXELS = {"range": Range(at_least=1, at_most=16_384)}


@dataclass
class ImageInput:
    """The input that an image encoder expects: size and normalisation."""

    height: int = field(default=224, metadata=_PIXELS)
    width: int = field(default=224, metadata=_PIXELS)
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # of red, green, blue in 0..1
    std: list[float] = field(  # of red, green, blue in 0..1
        default_factory=lambda: [0.229, 0.224, 0.225], metadata={"range": Range(above=0)}
    )
    resample: Literal["antialias", "tensorflow1"] = "antialias"  # tensorflow1: bilinear as the original resized

    def resize(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w] squashed to [3, height, width]; the aspect ratio is not kept, as in the paper."""
        if self.resample == "tensorflow1":
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
    """A box of `smallest` to 1 of the area and nearly the image's own aspect ratio, at a random place.

    image [3, h, w]; uniform: four numbers in 0..1 that decide, so that the caller owns the randomness.
    """
    height, width = image.shape[-2:]
    area = smallest + (1 - smallest) * uniform[0]
    stretch = (4 / 3) ** (uniform[1] - 0.5)  # the box's own aspect ratio differs by up to 15 % from the image's
    crop_height = max(1, min(height, round(height * (area / stretch) ** 0.5)))
    crop_width = max(1, min(width, round(width * (area * stretch) ** 0.5)))
    top = int(uniform[2] * (height - crop_height + 1))
    left = int(uniform[3] * (width - crop_width + 1))
    return image[:, top : top + crop_height, left : left + crop_width]


def random_shift(image: Tensor, most: int, uniform: Sequence[float]) -> Tensor:
    """The image moved by up to `most` pixels in each direction, black filling in: padded by it and cropped at random.

    image [3, h, w]; uniform: two numbers in 0..1 that decide.
    """
    height, width = image.shape[-2:]
    top, left = (int(number * (2 * most + 1)) for number in uniform)
    return F.pad(image, [most])[:, top : top + height, left : left + width]


def random_erase(image: Tensor, uniform: Sequence[float], colour: Sequence[float]) -> Tensor:
    """The image with a box of one colour in it (Zhong et al., Random Erasing Data Augmentation, AAAI 2020).

    The box has 0.02 to 0.4 of the area and is 0.3 to 3.3 times as high as wide, as far as such a box fits.
    image [3, h, w], values 0..255; uniform: four numbers in 0..1 that decide; colour: of the box, 0..1 each channel.
    """
    height, width = image.shape[-2:]
    area = (0.02 + 0.38 * uniform[0]) * height * width
    lowest, highest = max(math.log(0.3), math.log(area / width**2)), min(math.log(3.3), math.log(height**2 / area))
    shape = math.exp(lowest + (highest - lowest) * uniform[1]) if highest >= lowest else height / width
    box_height = max(1, min(height, round((area * shape) ** 0.5)))
    box_width = max(1, min(width, round((area / shape) ** 0.5)))
    top, left = int(uniform[2] * (height - box_height + 1)), int(uniform[3] * (width - box_width + 1))
    value = (torch.tensor(colour) * 255).round().to(image.dtype)[:, None, None]
    return F.erase(image, top, left, box_height, box_width, value.expand(-1, box_height, box_width))


def resize_bilinear_tensorflow1(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The original's resize: TensorFlow 1's bilinear interpolation on its own grid.

    uint8 or float [3, h, w] to float32 [3, height, width], values in the same range, not rounded. Target row i reads
    the source at i * h / height, without the half-pixel offset and without the low-pass filter that today's resizes
    have: images come out shifted by up to half a source pixel, and large ones aliased.
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
