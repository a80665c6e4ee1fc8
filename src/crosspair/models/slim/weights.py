"""Which of a TensorFlow checkpoint's variables are a model's, and TF-slim's ImageNet weights for the image towers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from crosspair.errors import UserError
from crosspair.formats.tensorflow_checkpoint import read_checkpoint
from crosspair.models.slim.variables import load_tf_variables

Variables = Mapping[str, np.ndarray]

_AVERAGE = "ExponentialMovingAverage"
# Last part of a variable's name that an optimizer or the averages own.
_SLOTS = {"Adam", "Adam_1", "Momentum", "RMSProp", "RMSProp_1", _AVERAGE}
_IMAGE_SCOPES = ("MobilenetV1", "resnet_v1_50", "resnet_v1_101", "resnet_v1_152")
_CLASSIFIER_PARTS = {"Logits", "logits", "mean_rgb"}


def load_slim_checkpoint(encoder: nn.Module, checkpoint: Path) -> None:
    """Fill one of the original's image towers from TF-slim's ImageNet checkpoint, whose classifier is left out.

    checkpoint: the V1 file (`resnet_v1_152.ckpt`) or the prefix of the V2 files (`mobilenet_v1_1.0_224.ckpt`).
    Raises UserError for damaged files and for a checkpoint of another tower.
    """
    variables = model_variables(read_checkpoint(checkpoint), ema=False)
    load_tf_variables(encoder, variables, image_scope(variables, checkpoint))


def model_variables(checkpoint: Variables, *, ema: bool) -> dict[str, np.ndarray]:
    """The variables a model consists of, without the optimizer's and an ImageNet classifier's.

    averages: give a variable that has a moving average its value, under the plain name.
    """
    variables = {}
    for name in checkpoint:
        parts = name.split("/")
        if parts[-1] in _SLOTS or _CLASSIFIER_PARTS & set(parts):
            continue
        average = f"{name}/{_AVERAGE}"
        variables[name] = checkpoint[average if ema and average in checkpoint else name]
    return variables


def image_scope(variables: Variables, checkpoint: Path) -> str:
    """Scope of the image tower, which is also its name in TF-slim."""
    found = sorted({name.split("/")[0] for name in variables} & set(_IMAGE_SCOPES))
    if len(found) != 1:
        raise UserError(
            f"{checkpoint} has variables of {' and '.join(found) or 'no known image tower'}; "
            f"expected one of {', '.join(_IMAGE_SCOPES)}"
        )
    return found[0]
