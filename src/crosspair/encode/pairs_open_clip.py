"""Ready-made pairs of `open_clip`, by their own code, from a configuration of which only known fields are passed on."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from crosspair.encode.locate import OPEN_CLIP_CONFIG, ModelFiles, read_json, refuse_unsafe_weights
from crosspair.encode.open_clip_names import import_open_clip
from crosspair.encode.pair_input import PairInput, checked_input
from crosspair.encode.pairs import ReadyPair, errors_named
from crosspair.errors import UserError

_MODEL = {"embed_dim", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias", "output_dict"}
_TOKENIZER = {"clean", "strip_sep_token", "language", "reduction_mask", "lower"}
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")


class OpenClipImages(nn.Module):
    """The image side of a pair: normalized pixels [b, 3, height, width] -> embeddings [b, num_features]."""

    def __init__(self, model: Any, num_features: int) -> None:
        super().__init__()
        self.model = model
        self.num_features = num_features

    def forward(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_image(pixels)
        return embeddings


class OpenClipTexts(nn.Module):
    """The text side of a pair: tokens [m, longest], lengths [m] -> embeddings [m, num_features]."""

    def __init__(self, model: Any, num_features: int) -> None:
        super().__init__()
        self.model = model
        self.num_features = num_features

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_text(tokens)
        return embeddings


class OpenClipTokens:
    """A tokenizer of `open_clip` with the interface of `Vocabulary`; it fills every text up to `longest` tokens."""

    def __init__(self, tokenizer: Any, longest: int, size: int) -> None:
        self.longest = longest
        self._tokenizer = tokenizer
        self._size = size

    def __len__(self) -> int:
        return self._size

    def encode(self, caption: str | Sequence[str], *others: Any) -> list[int]:
        """Numbers of a text's tokens, always `longest`. others: of a vocabulary of words, without a meaning here."""
        text = caption if isinstance(caption, str) else " ".join(caption)
        numbers: list[int] = self._tokenizer([text])[0].tolist()
        return numbers


def load_open_clip(files: ModelFiles) -> ReadyPair:
    """The pair in a folder, or of one of open_clip's own architectures with the weights in it.

    Raises UserError where open_clip is not installed, and for what can't be used.
    """
    open_clip = import_open_clip()
    settings = _settings(files, open_clip)
    weights = next((files.directory / name for name in _WEIGHTS if (files.directory / name).is_file()), None)
    if weights is None:
        found, wanted = (f'"{files.directory / name}"' for name in ("open_clip_pytorch_model.bin", _WEIGHTS[0]))
        advice = f"safetensors.torch.save_file(torch.load({found}, weights_only=True), {wanted}) writes it"
        refuse_unsafe_weights(files.directory, _WEIGHTS[0], f"if you trust them, {advice}")
    with TemporaryDirectory() as folder, _quiet(), errors_named(f"the model {files.name} can't be used"):
        name = f"local-dir:{_prepared(Path(folder), files.directory, settings)}"
        model = open_clip.create_model(name, load_weights=False, pretrained_text=False, device="cpu").eval()
        open_clip.factory.load_checkpoint(model, str(weights), strict=True, weights_only=True)
        tokenizer = open_clip.get_tokenizer(name, **_tokenizer_settings(settings))
        preprocessing = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
        transform = open_clip.transform.image_transform_v2(preprocessing, is_train=False)
    text = settings["model_cfg"]["text_cfg"]
    tokens = OpenClipTokens(tokenizer, int(text.get("context_length", 77)), int(text.get("vocab_size", 49_408)))
    with torch.no_grad(), errors_named(f"{files.name} can't encode what its own preprocessing prepares"):
        image_input = read_input(transform, files.name)
        pixels = torch.zeros(1, 3, image_input.height, image_input.width)
        images = OpenClipImages(model, model.encode_image(pixels).shape[1])
        texts = OpenClipTexts(model, model.encode_text(torch.tensor([tokens.encode("")])).shape[1])
    return ReadyPair(images, texts, image_input, tokens).checked(files.name)


def read_input(transform: Any, name: str) -> PairInput:
    """The input that open_clip's own preprocessing makes. Raises UserError for steps that are not known."""
    *steps, _, normalize = transform.transforms  # resizing and cropping, then to a tensor of 0..1

    def cut(image: Tensor) -> Tensor:
        seen: Any = F.to_pil_image(image)
        for step in steps:
            seen = step(seen)
        return F.pil_to_tensor(seen)

    def own(image: Tensor) -> Tensor:
        pixels: Tensor = transform(F.to_pil_image(image))
        return pixels

    mean, std = ([float(each) for each in values] for values in (normalize.mean, normalize.std))
    return checked_input(cut, mean, std, own, name)


def _settings(files: ModelFiles, open_clip: Any) -> dict[str, Any]:
    """model_cfg and preprocess_cfg with known fields alone. Raises UserError for sides that are not known here."""
    if files.architecture:
        weights = open_clip.pretrained.get_pretrained_cfg(files.architecture, files.tag)
        found = {"model_cfg": open_clip.get_model_config(files.architecture), "preprocess_cfg": weights}
    else:
        found = read_json(files.directory / OPEN_CLIP_CONFIG)
    model: Any = found.get("model_cfg")
    preprocessing: Any = found.get("preprocess_cfg") or {}
    images, texts = (model.get(key) if isinstance(model, dict) else None for key in ("vision_cfg", "text_cfg"))
    if not (isinstance(images, dict) and isinstance(texts, dict) and isinstance(preprocessing, dict)):
        raise UserError(
            f"{files.directory / OPEN_CLIP_CONFIG} configures no model of open_clip; expected model_cfg with "
            "vision_cfg and text_cfg, copy the model again"
        )
    if texts.get("hf_model_name") or "multimodal_cfg" in model:
        what = "a text encoder of transformers" if texts.get("hf_model_name") else "CoCa"
        raise UserError(f"{files.name} has {what}, which is not read here; name another model of open_clip")
    _check_timm(files.name, images.get("timm_model_name"))
    kept = {key: value for key, value in model.items() if key in _MODEL}
    kept["vision_cfg"] = _known(images, open_clip.CLIPVisionCfg)
    kept["text_cfg"] = _known(texts, open_clip.CLIPTextCfg)
    tokenizer = texts.get("tokenizer_kwargs")
    if isinstance(tokenizer, dict):
        kept["text_cfg"]["tokenizer_kwargs"] = {key: value for key, value in tokenizer.items() if key in _TOKENIZER}
    return {"model_cfg": kept, "preprocess_cfg": _known(preprocessing, open_clip.transform.PreprocessCfg)}


def _known(found: dict[str, Any], kind: Any) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {key: value for key, value in found.items() if key in names}


def _check_timm(name: str, encoder: Any) -> None:
    """Raise UserError unless an image encoder is one of timm's own, which are not looked up on a hub."""
    import timm

    if encoder and not timm.is_model(str(encoder)):
        raise UserError(f"{name} has the image encoder {encoder}, which timm doesn't know; upgrade timm")


def _tokenizer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What keeps a tokenizer of transformers to its folder and from running code of it."""
    named = settings["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    return {"local_files_only": True, "trust_remote_code": False} if named else {}


def _prepared(folder: Path, source: Path, settings: dict[str, Any]) -> Path:
    """A folder with these settings and the source's tokenizer, for open_clip to read."""
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    for path in source.iterdir():
        if path.is_file() and path.suffix in {".json", ".txt", ".model"} and path.name != OPEN_CLIP_CONFIG:
            shutil.copyfile(path, folder / path.name)
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's messages, which it sends to the root logger."""
    root, handler, disabled = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)  # the library's messages would add one for good
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)
