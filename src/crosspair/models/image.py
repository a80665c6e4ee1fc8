"""Image encoders by name: any `timm` model or one of the original's own towers, alone or joined."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from crosspair.data.transforms import ImageInput
from crosspair.errors import UserError
from crosspair.models.image_weights import PACKAGED, load_weights


class JoinedEncoders(nn.Module):
    """Several encoders that see the same picture: their features beside each other, [b, sum of num_features]."""

    def __init__(self, encoders: list[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.num_features = sum(encoder.num_features for encoder in encoders)  # type: ignore[misc]

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([encoder(pixels) for encoder in self.encoders], dim=1)


class PooledStages(nn.Module):
    """A `timm` model's features with the mean of each of its last stages' maps beside them.

    Lower stages keep what the last one drops on the way to its classes: colours, textures, parts.
    """

    def __init__(self, encoder: nn.Module, stages: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages = stages
        described: Any = encoder.feature_info
        channels = [stage["num_chs"] for stage in described][-stages:]
        self.num_features = encoder.num_features + sum(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        encoder: Any = self.encoder
        last, maps = encoder.forward_intermediates(pixels, indices=self.stages)
        return torch.cat([encoder.forward_head(last), *(each.mean(dim=(2, 3)) for each in maps)], dim=1)


def create_image_encoder(
    name: str,
    weights: str,
    size: tuple[int, int] | None = None,
    *,
    keep_head: bool = False,
    pooled_stages: int = 0,
) -> tuple[nn.Module, ImageInput]:
    """An encoder [b, 3, height, width] -> [b, num_features] and the input it expects.

    name: a `timm` model name or `slim_mobilenet_v1`, `slim_resnet_v1_{50,101,152}` (the original's towers); several
        names with + between them make one encoder of all their features.
    weights: `hub` (timm's pretrained weights), `package` (tf_efficientnet_lite0, 1 and 2), the path of a
        .safetensors file, for the original's towers also that of TF-slim's ImageNet checkpoint (a V1 file such as
        `resnet_v1_152.ckpt`, or the prefix of V2 files), or `none`. Weights that can't be had are an error.
    size: height and width of the input in pixels; None takes the model's own.
    keep_head: keep a timm model's last layer, such as CLIP's projection; its outputs are then the features.
    pooled_stages: so many of a timm model's last stages add the means of their maps to the features.
    """
    if "+" in name:
        return _join(name, weights, size, keep_head, pooled_stages)
    if name.startswith("slim_"):
        encoder, image_input = _create_slim(name)
        if weights == "hub":
            raise UserError(
                f"no hub has weights for {name}; set model.image.weights to TF-slim's checkpoint (such as "
                "resnet_v1_152.ckpt), to a .safetensors file or to none"
            )
    else:
        encoder, image_input = _create_timm(name, weights == "hub", size, keep_head)
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


def _create_slim(name: str) -> tuple[nn.Module, ImageInput]:
    from crosspair.models.slim.encoders import SLIM_ENCODERS, slim_input

    if name not in SLIM_ENCODERS:
        raise UserError(f"unknown image encoder '{name}'; the original's are {', '.join(SLIM_ENCODERS)}")
    return SLIM_ENCODERS[name](), slim_input(name)


def _create_timm(
    name: str, pretrained: bool, size: tuple[int, int] | None, keep_head: bool
) -> tuple[nn.Module, ImageInput]:
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"unknown image encoder '{name}'{hint}; `timm.list_models()` names them all")
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
    return encoder, ImageInput(height, width, list(expected["mean"]), list(expected["std"]))
