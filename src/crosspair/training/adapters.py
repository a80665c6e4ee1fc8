"""The adapters that a recipe asks for."""

from crosspair.encode.model import DualEncoder
from crosspair.models.projection import add_adapters
from crosspair.training.recipe import LoraConfig


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
