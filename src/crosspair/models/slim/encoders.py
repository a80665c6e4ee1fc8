"""The original's image towers by name, and the pixels each was trained on."""

from collections.abc import Callable
from functools import partial

from torch import nn

from crosspair.data.transforms import ImageInput
from crosspair.models.slim.mobilenet import slim_mobilenet_v1
from crosspair.models.slim.resnet import slim_resnet_v1_50, slim_resnet_v1_101, slim_resnet_v1_152
from crosspair.registry import register_image_encoder

_RESNET_MEAN = (123.68, 116.78, 103.94)  # red, green, blue, of 0..255


def slim_input(name: str) -> ImageInput:
    """The input of the encoder of that name: MobileNet -1..1, ResNet 0..255 less the mean colour; 224x224 pixels.

    The resampling is the usual one; the original's is `resample="tensorflow1"`.
    """
    if name.startswith("slim_mobilenet"):
        return ImageInput(mean=[0.5] * 3, std=[0.5] * 3)
    return ImageInput(mean=[value / 255 for value in _RESNET_MEAN], std=[1 / 255] * 3)


def _register(name: str, create: Callable[[], nn.Module], summary: str) -> None:
    def make() -> nn.Module:
        encoder = create()
        encoder.image_input = slim_input(name)  # type: ignore[assignment]
        return encoder

    make.__doc__ = summary
    register_image_encoder(name)(make)


_register("slim_mobilenet_v1", slim_mobilenet_v1, "The original's MobileNet-v1; 1,024 features.")
for _percent in (75, 50, 25):
    _register(
        f"slim_mobilenet_v1_0{_percent}",
        partial(slim_mobilenet_v1, _percent / 100),
        f"The original's MobileNet-v1 with {_percent} % of its channels.",
    )
_register("slim_resnet_v1_50", slim_resnet_v1_50, "The original's ResNet-50 with TF-slim's strides; 2,048 features.")
_register("slim_resnet_v1_101", slim_resnet_v1_101, "The original's ResNet-101 with TF-slim's strides; 2,048 features.")
_register("slim_resnet_v1_152", slim_resnet_v1_152, "The original's ResNet-152, the paper's; 2,048 features.")
