"""The original's image towers by name, and the pixels each was trained on."""

from collections.abc import Callable
from functools import partial

from torch import nn

from crosspair.data.transforms import ImageInput
from crosspair.models.slim.mobilenet import slim_mobilenet_v1
from crosspair.models.slim.resnet import slim_resnet_v1_50, slim_resnet_v1_101, slim_resnet_v1_152

SLIM_ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "slim_mobilenet_v1": slim_mobilenet_v1,
    "slim_mobilenet_v1_075": partial(slim_mobilenet_v1, 0.75),
    "slim_mobilenet_v1_050": partial(slim_mobilenet_v1, 0.5),
    "slim_mobilenet_v1_025": partial(slim_mobilenet_v1, 0.25),
    "slim_resnet_v1_50": slim_resnet_v1_50,
    "slim_resnet_v1_101": slim_resnet_v1_101,
    "slim_resnet_v1_152": slim_resnet_v1_152,
}

_RESNET_MEAN = (123.68, 116.78, 103.94)  # red, green, blue, of 0..255


def slim_input(name: str) -> ImageInput:
    """What the encoder of that name expects: MobileNet -1..1, ResNet 0..255 less the mean colour; 224x224 pixels.

    The resampling is the usual one; the original's is `resample="tensorflow1"`.
    """
    if name.startswith("slim_mobilenet"):
        return ImageInput(mean=[0.5] * 3, std=[0.5] * 3)
    return ImageInput(mean=[value / 255 for value in _RESNET_MEAN], std=[1 / 255] * 3)
