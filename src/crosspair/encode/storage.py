"""A model as files: config.json, model.safetensors and the vocabulary. Reading it never runs code from it.

The vocabulary is vocabulary.txt, one word a line, or the tokenizer.json of a text encoder from `transformers`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from crosspair.data.tokens import SubwordTokenizer, Vocabulary
from crosspair.data.transforms import ImageInput
from crosspair.errors import UserError
from crosspair.models.adapters import merged_state
from crosspair.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig
from crosspair.models.image_weights import check_state
from crosspair.storage.files import whole_directory
from crosspair.version import __version__

if TYPE_CHECKING:
    from crosspair.models.dual_encoder import DualEncoder
    from crosspair.models.transformer_text import TransformerTextEncoder

T = TypeVar("T")

FORMAT = 1
FILES = {"config.json", "model.safetensors", "vocabulary.txt", "tokenizer.json", "README.md"}


def save_model(model: "DualEncoder", directory: Path, card: str = "") -> None:
    """Write the model's directory whole, in place of a model that may be there; adapters are added to its weights.

    Raises UserError, and touches nothing, when the directory holds anything else.
    """
    from safetensors.torch import save_file

    _refuse_other_files(directory)
    with whole_directory(directory) as temporary:
        write_settings(model, temporary)
        # Cloned, as some transformers hold a table of tokens under two names, which the format can't.
        state = {key: value.detach().cpu().contiguous().clone() for key, value in merged_state(model).items()}
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        # safetensors makes the file readable by its owner alone; a model is made to be shared like its other files.
        (temporary / "model.safetensors").chmod((temporary / "config.json").stat().st_mode)
        if card or model.card:
            (temporary / "README.md").write_text(card or model.card, encoding="utf-8")


def write_settings(model: "DualEncoder", directory: Path) -> None:
    """All of a model but its weights and its card."""
    config = {
        "format": FORMAT,
        "crosspair": __version__,
        "model": asdict(model.config),
        "image_input": asdict(model.image_input),
    }
    architecture = getattr(model.text_encoder, "architecture", None)
    if architecture is not None:
        config["text_architecture"] = architecture
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model.vocabulary.save(directory / model.vocabulary.FILE)


def _refuse_other_files(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; expected a directory to write the model to, name another")
    others = sorted({path.name for path in directory.iterdir()} - FILES) if directory.is_dir() else []
    if others:
        raise UserError(
            f"{directory} holds what is no model's ({', '.join(others[:3])}); name a new directory, or one of a model"
        )


@dataclass(frozen=True)
class SavedModel:
    """What a model's directory holds, but for its card."""

    path: Path
    config: ModelConfig
    vocabulary: Vocabulary | SubwordTokenizer
    image_input: ImageInput
    text_architecture: dict[str, Any] | None  # of a text encoder from `transformers`
    state: dict[str, Tensor]

    def text_encoder(self) -> "TransformerTextEncoder | None":
        """The text encoder without its weights; None for the BiLSTM."""
        if self.text_architecture is None:
            return None
        from crosspair.models.transformer_text import TransformerTextEncoder

        return TransformerTextEncoder(self.text_architecture, self.config.text.pooling)

    def fill(self, model: nn.Module) -> None:
        """Give a model built from the above its weights. Raises UserError unless they are exactly its own."""
        check_state(model, self.state, str(self.path))
        model.load_state_dict(self.state)


def read_model(name: str, *, weights: bool = True) -> SavedModel:
    """Read the directory (or hub model) `name`. Raises UserError when it is no model.

    weights: leave the state empty where they are not needed.
    """
    directory = local_directory(name)
    config, image_input, architecture = _read_config(directory / "config.json")
    config.image.weights = "none"  # all weights are in the directory
    path = directory / "model.safetensors"
    state = _read_weights(path) if weights else {}
    if architecture is None:
        return SavedModel(path, config, Vocabulary.load(directory / Vocabulary.FILE), image_input, None, state)

    tokenizer = SubwordTokenizer.load(directory / SubwordTokenizer.FILE, architecture)
    return SavedModel(path, config, tokenizer, image_input, architecture, state)


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists() and (path.parent / "preprocessing.json").exists():
        raise UserError(
            f"{path.parent} is an export without PyTorch's weights; read it with backend='openvino', or name the model "
            "it was made from"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't read the model's weights {path} ({error}); copy the model again") from error


def read_card(weights: Path) -> str:
    """The card beside a model's weights; empty where there is none that is text."""
    try:
        return (weights.parent / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def push_model(model: "DualEncoder", name: str) -> str:
    """Upload a model to the Hugging Face hub and return its address."""
    from tempfile import TemporaryDirectory

    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(name, exist_ok=True)
    with TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model")
        api.upload_folder(repo_id=name, folder_path=Path(folder) / "model")
    return str(address)


def local_directory(name: str) -> Path:
    """Where the files of the directory or hub model `name` lie. Raises UserError when there are none."""
    directory = Path(name)
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise UserError(f"{directory} is not a model: it has no config.json; name the directory MODEL or RUN/model")
        return directory
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"there is no directory {name}; expected a model's directory or a hub name as user/model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=sorted(FILES)))
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} is no directory here, and the hub did not give it ({reason})") from error


def _read_config(path: Path) -> tuple[ModelConfig, ImageInput, dict[str, Any] | None]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] > FORMAT:
            raise UserError(
                f"{path} has format {found['format']}, this crosspair reads up to {FORMAT}; update crosspair"
            )
        model = found["model"]
        config = ModelConfig(
            _typed(ImageEncoderConfig, model["image"]),
            _typed(TextEncoderConfig, model["text"]),
            _typed(ProjectionConfig, model["projection"]),
        )
        image_input = _typed(ImageInput, found["image_input"])
        if not len(image_input.mean) == len(image_input.std) == 3:
            raise ValueError(f"mean {image_input.mean} and std {image_input.std} are not of three colours")
        return config, image_input, found.get("text_architecture")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a crosspair model's configuration ({error!r}); copy the model again") from error


def _typed(kind: type[T], found: dict[str, Any]) -> T:
    """A dataclass of what was read. Raises TypeError, naming the field, for a value of another type than declared."""
    made = kind(**found)
    for name, declared in get_type_hints(kind).items():
        if not _fits(getattr(made, name), declared):
            raise TypeError(f"{name} is {getattr(made, name)!r}")
    return made


def _fits(value: Any, declared: Any) -> bool:
    """Whether a value from JSON is of a declared type; numbers of things are never negative."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(_fits(value, each) for each in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if declared is int:
        return type(value) is int and value >= 0
    if declared is float:
        return type(value) in (int, float)
    return isinstance(value, declared)
