"""Which files a model's name means, and which library wrote them: crosspair itself, or that of a ready-made pair.

MODEL is a directory, or owner/name on the Hugging Face hub, of

- crosspair (`save_pretrained`, `crosspair train`),
- transformers (CLIP, SigLIP and others): config.json with `model_type`,
- open_clip: open_clip_config.json,
- sentence-transformers: modules.json,

or `open_clip:ARCHITECTURE/TAG`, `open_clip:local-dir:DIRECTORY`, `open_clip:hf-hub:OWNER/NAME`, or IMAGES+TEXTS, two
models of sentence-transformers that share a space. Nothing here reads weights.
"""

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeVar

from crosspair.encode.hub import reads_as_hub_name, snapshot, snapshot_revision
from crosspair.errors import UserError

T = TypeVar("T", dict[str, Any], list[Any])

Library = Literal["crosspair", "transformers", "open_clip", "sentence-transformers"]

CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
MODULES = "modules.json"
PREFIX = "open_clip:"
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")
WEIGHTS: dict[Library, tuple[str, ...]] = {
    "crosspair": ("model.safetensors",),
    "transformers": ("model.safetensors", "model-*-of-*.safetensors"),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
    "sentence-transformers": ("model.safetensors", "*/model.safetensors"),
}
_LARGEST = 64_000_000  # bytes of a JSON file of settings


@dataclass(frozen=True)
class ModelFiles:
    """A model's files. name: as it was given. directory: that holds them.

    architecture: of open_clip's own list, where the directory has no open_clip_config.json. texts: the model that
    encodes texts, where it is another one.
    """

    name: str
    library: Library
    directory: Path
    architecture: str = ""
    tag: str = ""
    texts: "ModelFiles | None" = None

    @property
    def is_pair(self) -> bool:
        """Whether it is a ready-made pair of another library."""
        return self.library != "crosspair"

    def checksum(self) -> str:
        """SHA-256 of all files that decide a ready-made pair's embeddings, and of its architecture.

        Raises UserError when a file can't be read.
        """
        checksum = hashlib.sha256(f"{self.library} {self.architecture} {self.tag}".encode())
        patterns = (*SETTINGS[:-1], *WEIGHTS[self.library])
        try:
            for path in sorted(self.directory.rglob("*")):
                name = path.relative_to(self.directory).as_posix()
                if path.is_file() and any(fnmatch(name, pattern) for pattern in patterns):
                    with path.open("rb") as file:
                        checksum.update(f"\n{name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        except OSError as error:
            raise UserError(f"can't read the model {self.directory} ({error}); copy the model again") from error
        if self.texts is not None:
            checksum.update(self.texts.checksum().encode())
        return checksum.hexdigest()


def locate(name: str) -> ModelFiles:
    """The files of a model, fetched from the hub where it is not a directory. Raises UserError when there is none."""
    if name.startswith(PREFIX):
        return _locate_open_clip(name)
    directory = Path(name)
    if _exists(directory) and directory.is_dir():
        return ModelFiles(name, library_of(directory), directory)
    if _exists(directory):
        raise UserError(f"{name} is a file; expected a model's directory, which also says how pictures are prepared")
    if name.count("+") == 1:
        images, texts = (locate(part) for part in name.split("+"))
        if {images.library, texts.library} != {"sentence-transformers"}:
            raise UserError(
                f"found {images.library} and {texts.library} models in {name}; expected IMAGES+TEXTS, two models of "
                "sentence-transformers that share a space"
            )
        return ModelFiles(name, "sentence-transformers", images.directory, texts=texts)
    return _locate_on_hub(name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have, such as a long one
        return False


def library_of(directory: Path) -> Library:
    """The library that wrote a model's directory. Raises UserError for a directory of no model."""
    if (directory / MODULES).is_file():
        return "sentence-transformers"
    if (directory / CONFIG).is_file():
        try:
            found = read_json(directory / CONFIG)
        except UserError:
            return "crosspair"  # whose reader says what is wrong
        if "model_type" in found:
            return "transformers"
        if "model" in found or not (directory / OPEN_CLIP_CONFIG).is_file():
            return "crosspair"
    if (directory / OPEN_CLIP_CONFIG).is_file():
        return "open_clip"
    raise UserError(
        f"{directory} is not a model: it has no config.json; name the directory MODEL or RUN/model, or that of a pair "
        "of transformers, open_clip or sentence-transformers"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a stranger. Raises UserError when it holds anything else."""
    return read_json_file(path, dict)


def read_json_file(path: Path, kind: type[T]) -> T:
    """What is in a JSON file of a stranger. kind: dict or list. Raises UserError when it holds anything else."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"can't read {path} ({error!s:.100}); copy the model again") from error
    if not isinstance(found, kind):
        names = {dict: "an object", list: "a list"}
        raise UserError(f"{path} holds no JSON of the kind that is expected, {names[kind]}; copy the model again")
    return found


def refuse_unsafe_weights(directory: Path, expected: str, advice: str) -> None:
    """Raise UserError for a folder without the weights `expected`, saying what to do where it has pickled ones."""
    found = sorted(path.name for path in directory.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if found:
        raise UserError(
            f"{directory} has its weights in {found[0]}, a pickle, which is never read here as it can run code; "
            f"expected {expected}: {advice}"
        )
    raise UserError(f"{directory} has no weights; expected {expected}, copy the model again")


def _locate_on_hub(name: str) -> ModelFiles:
    if not reads_as_hub_name(name):
        raise UserError(f"there is no directory {name}; expected a model's directory or a hub name as owner/model")
    owner = Path(name).parent
    if owner.is_dir():
        raise UserError(
            f"there is no directory {name}, and as {owner} is a directory here the hub was not asked for it; expected "
            "a model's directory or a hub name as owner/model"
        )
    settings = snapshot(name, SETTINGS)
    library = library_of(settings)
    return ModelFiles(name, library, _fetched(name, library, snapshot_revision(settings)))


def _locate_open_clip(name: str) -> ModelFiles:
    from crosspair.encode.open_clip_names import hub_name_of

    given = name.removeprefix(PREFIX)
    if given.startswith("local-dir:"):
        directory = Path(given.removeprefix("local-dir:"))
        if not (directory / OPEN_CLIP_CONFIG).is_file():
            raise UserError(
                f"{directory} is no model of open_clip: it has no {OPEN_CLIP_CONFIG}; name another directory"
            )
        return ModelFiles(name, "open_clip", directory)
    if given.startswith("hf-hub:"):
        return ModelFiles(name, "open_clip", _fetched(given.removeprefix("hf-hub:"), "open_clip"))
    architecture, _, tag = given.rpartition("/")
    return ModelFiles(name, "open_clip", _fetched(hub_name_of(architecture, tag), "open_clip"), architecture, tag)


def _fetched(name: str, library: Library, revision: str | None = None) -> Path:
    """The folder of a hub's model with settings and weights. Raises UserError where it has no weights that are read."""
    folder = snapshot(name, [*SETTINGS, *WEIGHTS[library]], revision=revision)
    if library != "crosspair" and not any(any(folder.glob(pattern)) for pattern in WEIGHTS[library]):
        raise UserError(
            f"{name} has no {WEIGHTS[library][0]} on the hub, and pickled weights are not fetched; run `hf download "
            f"{name} --local-dir DIR` and name DIR, whose error tells how to convert them"
        )
    return folder
