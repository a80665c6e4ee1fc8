"""Which parameters of an encoder train: all, those of its upper layers (counted from the top), or adapters."""

import re
from typing import Any

from torch import nn

from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.models.image import JoinedEncoders, PooledStages
from crosspair.models.projection import add_adapters
from crosspair.models.text import BiLSTMEncoder
from crosspair.models.transformer_text import TransformerTextEncoder
from crosspair.training.recipe import LoraConfig, StageConfig


def layers_from_top(encoder: nn.Module) -> dict[int, int]:
    """id of each weight -> number of layers above its own; 0 for the last block and what follows it.

    A `timm` model names its own layers. A text encoder's are its blocks, and its embeddings below them; the BiLSTM is
    one layer. Raises UserError for an encoder whose layers are not known.
    """
    if isinstance(encoder, JoinedEncoders):
        return {weight: above for each in encoder.encoders for weight, above in layers_from_top(each).items()}
    if isinstance(encoder, PooledStages):
        return layers_from_top(encoder.encoder)
    if isinstance(encoder, BiLSTMEncoder):
        return {id(value): 0 for value in encoder.parameters()}
    if isinstance(encoder, TransformerTextEncoder):
        found = _of_transformer(encoder)
    elif hasattr(encoder, "group_matcher"):
        from timm.models import group_parameters

        matcher: Any = encoder.group_matcher
        found = group_parameters(encoder, matcher(coarse=False), reverse=True)
    else:
        raise UserError(
            f"the layers of {type(encoder).__name__} are not known; set layer_decay to 1 and image_layers to 0"
        )
    top = max(found.values())
    return {id(value): top - found[name] for name, value in encoder.named_parameters()}


def freeze_for_stage(model: DualEncoder, stage: StageConfig) -> None:
    """Freeze and unfreeze parameters as a stage says.

    Raises UserError where the stage trains upper layers of an image encoder whose layers are not known.
    """
    model.freeze_text_encoder(stage.freeze_text_encoder)
    if stage.freeze_image_encoder:
        model.freeze_image_encoder(freeze_bn_stats=stage.bn_stats_frozen)
        return
    model.unfreeze_image_encoder(freeze_bn_stats=stage.bn_stats_frozen)
    if stage.image_layers:
        freeze_below(model.image_encoder, stage.image_layers)


def freeze_below(encoder: nn.Module, layers: int) -> None:
    """Keep the weights of all but the `layers` upper layers; the gradient then stops above them.

    Raises UserError for an encoder whose layers are not known.
    """
    above = layers_from_top(encoder)
    for value in encoder.parameters():
        if above[id(value)] >= layers:
            value.requires_grad_(False)


def add_recipe_adapters(model: DualEncoder, config: LoraConfig) -> None:
    """Give the encoders their adapters. Raises UserError where an encoder has no layers for them."""
    if config.rank == 0:
        return
    for name, encoder in (("image", model.image_encoder), ("text", model.text_encoder)):
        if config.encoders in {"both", name}:
            add_adapters(
                encoder,
                name,
                rank=config.rank,
                alpha=config.alpha,
                dropout=config.dropout,
                layers=config.layers,
            )


def _of_transformer(encoder: nn.Module) -> dict[str, int]:
    """Name -> layer, from 0 for the embeddings; the first number in a name is that of the block."""
    blocks = {name: re.search(r"\.(\d+)\.", name) for name, _ in encoder.named_parameters()}
    top = max((int(block[1]) + 1 for block in blocks.values() if block), default=0)
    tables = {
        f"{name}.{leaf}"
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Embedding) or "embed" in name.lower()
        for leaf, _ in module.named_parameters()
    }
    return {name: int(block[1]) + 1 if block else 0 if name in tables else top for name, block in blocks.items()}
