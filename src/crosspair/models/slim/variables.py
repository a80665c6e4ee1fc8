"""The original's TensorFlow variables as tensors of our modules, and which of a checkpoint's variables are a model's.

A module's tensors come from the variables below one scope, for example `MobilenetV1` or `BiLSTM`. TensorFlow keeps
convolutions as height, width, in, out and matrices as in, out; PyTorch puts out first.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from crosspair.errors import UserError
from crosspair.models.projection import Projection
from crosspair.models.slim.layers import ConvNorm
from crosspair.models.slim.mobilenet import SlimMobileNet
from crosspair.models.slim.resnet import SlimResNet
from crosspair.models.text import BiLSTMEncoder

Array = np.ndarray
Variables = Mapping[str, Array]

_AVERAGE = "ExponentialMovingAverage"
# Last part of a variable's name that an optimizer or the averages own.
_SLOTS = {"Adam", "Adam_1", "Momentum", "RMSProp", "RMSProp_1", _AVERAGE}
_IMAGE_SCOPES = ("MobilenetV1", "resnet_v1_50", "resnet_v1_101", "resnet_v1_152")
_CLASSIFIER_PARTS = {"Logits", "logits", "mean_rgb"}


class Source(NamedTuple):
    """The source of one tensor: names below the scope, and how their arrays become the tensor's values."""

    variables: tuple[str, ...]
    convert: Callable[..., Array]


def load_tf_variables(module: nn.Module, variables: Mapping[str, Array], scope: str) -> None:
    """Fill `module` from the variables below `scope/`, which must be exactly those it has; others are not looked at.

    module: SlimMobileNet, SlimResNet, BiLSTMEncoder or Projection.
    Raises UserError that names missing, extra or mis-shaped variables.
    """
    state = module.state_dict()
    module.load_state_dict({**state, **state_from_tf_variables(module, variables, scope)})


def state_from_tf_variables(module: nn.Module, variables: Mapping[str, Array], scope: str) -> dict[str, Tensor]:
    """The part of `module.state_dict()` that TensorFlow keeps as variables, in the module's own types.

    That is all of it but batch norm's `num_batches_tracked`. Arguments and errors as in `load_tf_variables`.
    """
    sources = tf_sources(module)
    expected = {name: None for source in sources.values() for name in source.variables}  # a set that keeps its order
    found = {name.removeprefix(f"{scope}/") for name in variables if name.startswith(f"{scope}/")}
    _refuse(module, scope, "missing", [name for name in expected if name not in found])
    _refuse(module, scope, "unknown", sorted(found - expected.keys()))
    tensors = module.state_dict()
    state, misshaped = {}, []
    for name, source in sources.items():
        arrays = [np.asarray(variables[f"{scope}/{variable}"]) for variable in source.variables]
        try:
            value = source.convert(*arrays)
        except (ValueError, IndexError):  # too few axes or an indivisible one
            value = None
        if value is None or value.shape != tuple(tensors[name].shape):
            misshaped += [f"{v} {list(array.shape)}" for v, array in zip(source.variables, arrays, strict=True)]
        else:
            state[name] = torch.tensor(value, dtype=tensors[name].dtype)
    _refuse(module, scope, "mis-shaped", misshaped)
    return state


def _refuse(module: nn.Module, scope: str, kind: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"{kind} below '{scope}': {', '.join(names[:3])}{more}; expected the variables of a "
            f"{type(module).__name__} of this size, check that model and checkpoint belong together"
        )


def tf_sources(module: nn.Module) -> dict[str, Source]:
    """Source of every tensor of `module.state_dict()` that TensorFlow keeps, names relative to the module's scope."""
    if isinstance(module, BiLSTMEncoder):
        return _bilstm_sources(module)
    if isinstance(module, Projection):
        weight = Source(("weights",), lambda kernel: kernel.transpose(3, 2, 0, 1)[:, :, 0, 0])
        return {"linear.weight": weight, **_norm_sources("norm", "BatchNorm")}
    if not isinstance(module, SlimMobileNet | SlimResNet):
        raise TypeError(f"no TensorFlow names are known for a {type(module).__name__}")
    sources = {}
    for path, layer in module.named_modules():
        if isinstance(layer, ConvNorm):
            scope = _layer_scope(path)
            if layer.conv.groups > 1:  # height, width, channel, 1
                weight = Source((f"{scope}/depthwise_weights",), lambda kernel: kernel.transpose(2, 3, 0, 1))
            else:
                weight = Source((f"{scope}/weights",), lambda kernel: kernel.transpose(3, 2, 0, 1))
            sources[f"{path}.conv.weight"] = weight
            sources |= _norm_sources(f"{path}.norm", f"{scope}/BatchNorm")
    return sources


def _layer_scope(path: str) -> str:
    """TensorFlow's name of a layer: Conv2d_3_depthwise, or block1/unit_2/bottleneck_v1/conv3."""
    if path.startswith("layers."):
        return path.removeprefix("layers.").capitalize()
    *unit, layer = path.removeprefix("blocks.").split(".")
    return "/".join([*unit, "bottleneck_v1", layer] if unit else [layer])


def _norm_sources(path: str, scope: str) -> dict[str, Source]:
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    return {f"{path}.{ours}": Source((f"{scope}/{theirs}",), np.asarray) for ours, theirs in names.items()}


def _bilstm_sources(module: BiLSTMEncoder) -> dict[str, Source]:
    inputs, hidden = module.lstm.input_size, module.lstm.hidden_size

    def gate_rows(columns: Array) -> Array:
        """Column blocks i, j (candidate), f, o as PyTorch's row blocks i, f, g (candidate), o."""
        return columns.reshape(-1, 4, hidden)[:, [0, 2, 1, 3]].reshape(-1, 4 * hidden).T

    def bias(columns: Array) -> Array:
        """The cell adds 1 to the forget gate when it runs; here it is part of the bias."""
        forget = np.repeat([0.0, 1.0, 0.0, 0.0], hidden)
        return np.asarray(gate_rows(columns)[:, 0] + forget)

    sources = {"embedding.weight": Source(("token_embedding_weights",), np.asarray)}
    for suffix, direction in (("l0", "fw"), ("l0_reverse", "bw")):
        cell = f"bidirectional_lstm/bidirectional_rnn/{direction}/basic_lstm_cell"
        sources[f"lstm.weight_ih_{suffix}"] = Source((f"{cell}/kernel",), lambda kernel: gate_rows(kernel[:inputs]))
        sources[f"lstm.weight_hh_{suffix}"] = Source((f"{cell}/kernel",), lambda kernel: gate_rows(kernel[inputs:]))
        sources[f"lstm.bias_ih_{suffix}"] = Source((f"{cell}/bias",), bias)
        sources[f"lstm.bias_hh_{suffix}"] = Source((f"{cell}/bias",), np.zeros_like)
    for ours, theirs in (("initial_cell", "init_state_0"), ("initial_hidden", "init_state_1")):
        names = tuple(f"bidirectional_lstm/{direction}/{theirs}" for direction in ("forward", "backward"))
        sources[ours] = Source(names, lambda forward, backward: np.stack([forward, backward]))
    return sources


def model_variables(checkpoint: Variables, *, ema: bool) -> dict[str, np.ndarray]:
    """The variables a model consists of, without the optimizer's and an ImageNet classifier's.

    ema: give a variable that has a moving average its value, under the plain name.
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
