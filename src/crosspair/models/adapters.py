"""LoRA: small trained matrices beside the linear layers of an encoder whose own weights stay (Hu et al., 2021).

The adapters live in the encoder's modules while it trains; a saved model has them added to its weights.
"""

import re
from typing import Literal

import torch
from torch import Tensor, nn

from crosspair.errors import UserError

Layers = Literal["attention", "all-linear"]


def add_adapters(
    encoder: nn.Module, what: str, *, rank: int, alpha: float, dropout: float = 0.0, layers: Layers = "attention"
) -> None:
    """Give linear layers y = W x of an encoder the form y = W x + alpha / rank * B A x, with B = 0 at first.

    rank: rows of A. dropout: share of x dropped before A, in training. layers: those of the attention, or all.
    Raises UserError where there are none, naming the encoder as `what`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    found = [name for name, module in encoder.named_modules() if type(module) is nn.Linear]
    chosen = [name for name in found if layers == "all-linear" or _in_attention(name)]
    if not chosen:
        hint = "set lora.layers to all-linear" if found else "train it without adapters (lora.encoders)"
        raise UserError(f"the {what} encoder has no {layers} layers for adapters; {hint}")
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)  # type: ignore[arg-type]
    inject_adapter_in_model(config, encoder)


def adapter_or_all(encoder: nn.Module) -> list[nn.Parameter]:
    """What trains of an encoder: its adapters where it has any, else all its weights."""
    named = list(encoder.named_parameters())
    return [value for name, value in named if _is_adapter(name)] or [value for _, value in named]


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the model would have without adapters, what they add being part of the weights."""
    state = {}
    for name, value in model.state_dict().items():
        if _is_adapter(name):
            continue
        layer, base, leaf = name.rpartition(".base_layer.")
        if base:
            if leaf == "weight":
                value = value + model.get_submodule(layer).get_delta_weight("default").to(value.dtype)  # type: ignore[operator]
            name = f"{layer}.{leaf}"
        state[name] = value
    return state


def _in_attention(name: str) -> bool:
    """Whether a part of a module's dotted name speaks of attention: attn, self_attn, SelfAttention, attention."""
    return re.search("attn|attention", name, re.IGNORECASE) is not None


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
