"""Text encoders of the `transformers` library: the text side alone, its states pooled to one vector a caption."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from crosspair.errors import UserError

# What `transformers` has no mapping for from a configuration of a text side to its class.
_CLASSES = {"siglip_text_model": "SiglipTextModel", "siglip2_text_model": "Siglip2TextModel"}
GROUP = 32  # captions of like length that a CPU takes at a time: less padding to compute on, 0.7 to 0.8 of the time


class TransformerTextEncoder(nn.Module):
    """Token numbers to one vector a caption, by a pretrained transformer and a way of pooling its states.

    architecture: its Hugging Face configuration, of the text side alone. pooling: `mean` over the caption's tokens,
    `cls` (the first token), `eos` (the last) or `model`, the model's own pooled output (CLIP's and SigLIP's is
    projected into their joint space).
    """

    def __init__(self, architecture: dict[str, Any], pooling: str, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.pooling = pooling
        if encoder is None:
            encoder = transformer_class(architecture, pooling)(transformer_config(architecture))
        self.encoder: Any = encoder
        if pooling != "model" and getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # its weights would take part in nothing
        pooled = architecture.get("projection_dim") or architecture.get("projection_size")
        self.num_features = int(pooled if pooling == "model" and pooled else architecture["hidden_size"])

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens int64 [m, t] padded at the end, lengths int64 [m], at least 1 -> features [m, num_features]."""
        if torch.compiler.is_compiling() or tokens.device.type != "cpu" or len(tokens) <= GROUP:
            return self._features(tokens, lengths)
        order = lengths.argsort()
        groups = [(tokens[rows, : int(lengths[rows].max())], lengths[rows]) for rows in torch.split(order, GROUP)]
        return torch.cat([self._features(*group) for group in groups])[order.argsort()]

    def _features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.to(tokens.device, non_blocking=True)
        present = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        seen = self.encoder(input_ids=tokens, attention_mask=present.long())
        if self.pooling == "model":
            pooled: Tensor | None = seen.get("text_embeds", seen.get("pooler_output"))
            if pooled is None:
                kind = self.architecture["model_type"]
                raise UserError(f"a {kind} pools no states itself; set model.text.pooling to mean, cls or eos")
            return pooled
        states: Tensor = seen.last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "eos":
            return states[torch.arange(states.shape[0], device=states.device), lengths - 1]
        weights = present[:, :, None].to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)


def transformer_config(architecture: dict[str, Any]) -> Any:
    """A configuration of `transformers` from one that a stranger may have written, of its `model_type`.

    Raises UserError for a kind that the library doesn't know.
    """
    from transformers import CONFIG_MAPPING

    kind = str(architecture.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UserError(f"transformers has no model of the kind {kind}; name another")
    config_class = CONFIG_MAPPING[kind]
    return config_class(**declared_fields(config_class, architecture))


def attention(model_class: Any) -> str:
    """The implementation of attention to ask for: PyTorch's own, which no configuration can replace by fetched code."""
    return "sdpa" if model_class._supports_sdpa else "eager"


def declared_fields(config_class: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration the fields that its own class declares, also within its parts; nothing that all classes have.

    What is left out can't choose code to run: attn_implementation, quantization_config, auto_map and others.
    """
    names = _declared_names(config_class)
    kept: dict[str, Any] = {}
    for key, value in found.items():
        part = config_class.sub_configs.get(key.removesuffix("_dict"))  # text_config_dict: of early models of CLIP
        if part is not None and isinstance(value, dict):
            kept[key] = declared_fields(part, value)
        elif key in names:
            kept[key] = value
    return kept


def _declared_names(config_class: Any) -> set[str]:
    from transformers import PreTrainedConfig

    names: set[str] = set()
    for base in config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]:
        declared = (
            vars(base).get("__annotations__") or signature(base).parameters
        )  # before transformers had dataclasses
        names |= set(declared)
    return names


def transformer_class(architecture: dict[str, Any], pooling: str) -> Any:
    """The class of `transformers` that reads text with this architecture. Code beside the weights is never run."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING

    kind = architecture["model_type"]
    if kind == "clip_text_model" and pooling == "model":
        return transformers.CLIPTextModelWithProjection
    if kind in _CLASSES:
        return getattr(transformers, _CLASSES[kind])
    config = type(transformer_config(architecture))
    for mapping in (MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING):
        if config in mapping:
            return mapping[config]
    raise UserError(f"transformers has no text encoder of the kind {kind}; name another")
