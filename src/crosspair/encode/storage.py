"""Models on disk: config.json, model.safetensors and the vocabulary. Loading one never runs code from it.

The vocabulary is vocabulary.txt, one word a line, or the tokenizer.json of a text encoder from `transformers`.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from crosspair.data.tokens import SubwordTokenizer, Vocabulary
from crosspair.data.transforms import ImageInput
from crosspair.encode.locate import CONFIG, locate
from crosspair.errors import UserError
from crosspair.models.config import ModelConfig
from crosspair.registry import IMAGE_ENCODERS, TEXT_ENCODERS, Plugin, loaded_plugins, plugin_module
from crosspair.storage import manifest as manifests
from crosspair.storage.files import whole_directory
from crosspair.version import __version__

FORMAT = 1
WEIGHTS = "model.safetensors"
FILES = {CONFIG, WEIGHTS, Vocabulary.FILE, SubwordTokenizer.FILE, "README.md"}
EXPORT = "preprocessing.json"  # what an export has beside config.json


@dataclass(frozen=True)
class SavedModel:
    """A model's directory as it was read."""

    config: ModelConfig
    vocabulary: Vocabulary | SubwordTokenizer
    image_input: ImageInput
    text_architecture: dict[str, Any] | None  # of a text encoder from `transformers`
    state: dict[str, Tensor]
    card: str = ""


@dataclass(frozen=True)
class _PluginFacts:
    """Of the plugin that registered an encoder."""

    name: str
    checksum: str


@dataclass(frozen=True)
class _Config:
    """`config.json`, read as if a stranger had written it."""

    model: ModelConfig
    image_input: ImageInput
    text_architecture: dict[str, Any] | None = None
    plugins: dict[str, _PluginFacts] = field(default_factory=dict)  # by the encoder's name
    crosspair: str = __version__  # that wrote it
    format: int = FORMAT


def save_model(saved: SavedModel, directory: Path) -> None:
    """Write the model's directory whole, in place of a model that may be there.

    Raises UserError, and touches nothing, when the directory holds anything else.
    """
    from safetensors.torch import save_file

    _refuse_other_files(directory)
    with whole_directory(directory) as temporary:
        write_settings(saved, temporary)
        # Cloned, as some transformers hold a table of tokens under two names, which the format can't.
        state = {key: value.detach().cpu().contiguous().clone() for key, value in saved.state.items()}
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
        # safetensors makes the file readable by its owner alone; a model is made to be shared like its other files.
        (temporary / WEIGHTS).chmod((temporary / CONFIG).stat().st_mode)
        if saved.card:
            (temporary / "README.md").write_text(saved.card, encoding="utf-8")


def write_settings(saved: SavedModel, directory: Path) -> None:
    """All of a model but its weights and its card."""
    config = _Config(saved.config, saved.image_input, saved.text_architecture, _plugins(saved.config))
    (directory / CONFIG).write_text(manifests.manifest_text(config), encoding="utf-8")
    saved.vocabulary.save(directory / saved.vocabulary.FILE)


def _plugins(config: ModelConfig) -> dict[str, _PluginFacts]:
    """Name and checksum of the plugin of each encoder that has one, by the encoder's name."""
    images = {part.strip(): plugin_of(part.strip(), "image") for part in config.image.name.split("+")}
    found = {**images, config.text.name: plugin_of(config.text.name, "text")}
    return {name: _PluginFacts(plugin.name, plugin.checksum) for name, plugin in found.items() if plugin is not None}


def plugin_of(name: str, side: Literal["image", "text"]) -> Plugin | None:
    """The plugin that an encoder's name comes from; None for what is built in."""
    registry = IMAGE_ENCODERS if side == "image" else TEXT_ENCODERS
    if name in registry:
        return registry.entry(name).plugin
    if side == "text":
        return None
    import timm

    if not timm.is_model(name):
        return None
    module = timm.model_entrypoint(name).__module__  # of timm's own registry, which plugins add to as well
    found = (plugin for plugin in loaded_plugins() if module == plugin_module(plugin.source))
    return next(found, None)


def _check_plugins(config: ModelConfig, plugins: dict[str, _PluginFacts], model: Path) -> None:
    """That the plugins of a saved model's encoders are loaded. plugins: by the encoder's name, its name and checksum.

    Raises UserError for one that is missing; one that has changed since is told on stderr.
    """
    names: list[tuple[str, Literal["image", "text"]]] = [
        (part.strip(), "image") for part in config.image.name.split("+")
    ]
    for name, side in [*names, (config.text.name, "text")]:
        if name not in plugins:
            continue
        wanted, found = plugins[name], plugin_of(name, side)
        if found is None:
            raise UserError(
                f"{model} has the {side} encoder '{name}' of the plugin {wanted.name}, which is not loaded; name it "
                f"with --plugin {wanted.name} or in CROSSPAIR_PLUGINS"
            )
        if found.checksum != wanted.checksum:
            print(f"the plugin {found.name} has changed since {model} was saved", file=sys.stderr)


def model_checksum(name: str | Path) -> str:
    """SHA-256 of all that decides a model's embeddings: configuration, weights (or graphs) and vocabulary.

    name: as `DualEncoder.from_pretrained` takes it. Galleries, stored results and kept features are of the model that
    has it. Raises UserError for what is no model.
    """
    files = locate(str(name))
    if files.is_pair:
        return files.checksum()
    directory = files.directory
    checksum = hashlib.sha256()
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        decisive = {key: value for key, value in config.items() if key not in ("format", "crosspair")}
        checksum.update(json.dumps(decisive, sort_keys=True).encode())
        for path in sorted(directory.iterdir()):
            if path.name in FILES - {CONFIG, "README.md"} or path.suffix in (".onnx", ".xml", ".bin", ".data"):
                with path.open("rb") as file:
                    checksum.update(f"\n{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"can't read the model {directory} ({error!s:.100}); copy the model again") from error
    return checksum.hexdigest()


def _refuse_other_files(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; expected a directory to write the model to, name another")
    others = sorted({path.name for path in directory.iterdir()} - FILES) if directory.is_dir() else []
    if others:
        raise UserError(
            f"{directory} holds what is no model's ({', '.join(others[:3])}); name a new directory, or one of a model"
        )


def read_model(name: str, *, weights: bool = True) -> SavedModel:
    """Read the directory (or hub model) `name`. Raises UserError when it is no model that crosspair wrote.

    weights: leave the state empty where they are not needed.
    """
    files = locate(name)
    if files.is_pair:
        raise UserError(f"{name} is a ready-made pair of {files.library}; expected a model that crosspair wrote")
    return read_saved(files.directory, weights=weights)


def read_saved(directory: Path, *, weights: bool = True) -> SavedModel:
    """Read a directory that crosspair wrote, as `read_model`."""
    config = _read_config(directory)
    config.model.image.weights, config.model.text.word_vectors = "none", None  # all weights are in the directory
    state = _read_weights(directory / WEIGHTS) if weights else {}
    vocabulary: Vocabulary | SubwordTokenizer
    if config.text_architecture is None:
        vocabulary = Vocabulary.load(directory / Vocabulary.FILE)
    else:
        vocabulary = SubwordTokenizer.load(directory / SubwordTokenizer.FILE, config.text_architecture)
    card = _read_card(directory)
    return SavedModel(config.model, vocabulary, config.image_input, config.text_architecture, state, card)


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists() and (path.parent / EXPORT).exists():
        raise UserError(
            f"{path.parent} is an export without PyTorch's weights; read it with backend='openvino', or name the model "
            "it was made from"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't read the model's weights {path} ({error}); copy the model again") from error


def _read_card(directory: Path) -> str:
    """The card of a model; empty where there is none that is text."""
    try:
        return (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _read_config(directory: Path) -> _Config:
    path, advice, problem = directory / CONFIG, "copy the model again", "is not a crosspair model's configuration"
    config = manifests.read_manifest(path, _Config, FORMAT, advice, problem)
    with manifests.damage_named(path, advice, problem):
        for name in ("mean", "std"):
            if len(values := getattr(config.image_input, name)) != 3:
                raise manifests.ManifestError(f"field 'image_input.{name}' is {values}; expected three colours' values")
    _check_plugins(config.model, config.plugins, directory)
    return config
