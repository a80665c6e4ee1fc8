"""Ready-made pairs of `transformers`: CLIP, SigLIP, SigLIP 2 of a fixed size, Chinese-CLIP, ALIGN and MetaCLIP 2.

No code of a model's folder is run, and of its configuration only the fields that its class declares are passed on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from crosspair.encode.locate import CONFIG, WEIGHTS, ModelFiles, read_json, refuse_unsafe_weights
from crosspair.encode.pair_input import PairInput, checked_input
from crosspair.encode.pairs import ReadyPair, errors_named
from crosspair.errors import UserError
from crosspair.models.transformer_text import attention, declared_fields

_CLASSES = {
    "align": "AlignModel",
    "chinese_clip": "ChineseCLIPModel",
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "siglip": "SiglipModel",
}
_VOCABULARIES = [
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("tokenizer.model",),
]
_FILLED = {"siglip"}  # trained on texts filled to their full length, without a mask


class TransformersImages(nn.Module):
    """The image side of a pair: normalized pixels [b, 3, height, width] -> embeddings [b, num_features]."""

    def __init__(self, model: Any, num_features: int) -> None:
        super().__init__()
        self.model = model
        self.num_features = num_features

    def forward(self, pixels: Tensor) -> Tensor:
        return _pooled(self.model.get_image_features(pixel_values=pixels))


class TransformersTexts(nn.Module):
    """The text side of a pair: tokens [m, t], lengths [m] -> embeddings [m, num_features]."""

    num_features: int

    def __init__(self, model: Any, filler: int, *, masked: bool) -> None:
        super().__init__()
        self.model = model
        self.filler = filler
        self.masked = masked

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        if not self.masked:
            return _pooled(self.model.get_text_features(input_ids=tokens))
        present = torch.arange(tokens.shape[1], device=tokens.device) < lengths.to(tokens.device)[:, None]
        tokens = torch.where(present, tokens, self.filler)
        return _pooled(self.model.get_text_features(input_ids=tokens, attention_mask=present.long()))


class TransformersTokens:
    """A tokenizer of `transformers` with the interface of `Vocabulary`.

    longest: most tokens of a text, special ones included. fixed_length: fill every text up to them.
    """

    def __init__(self, tokenizer: Any, longest: int, *, fixed_length: bool) -> None:
        self.longest = longest
        self.fixed_length = fixed_length
        self.filler = int(tokenizer.pad_token_id or 0)
        self._tokenizer = tokenizer
        self._padding = "max_length" if fixed_length else False

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode(self, caption: str | Sequence[str], *others: Any) -> list[int]:
        """Numbers of a text's tokens, `longest` at most. others: of a vocabulary of words, without a meaning here."""
        text = caption if isinstance(caption, str) else " ".join(caption)
        found = self._tokenizer(text, padding=self._padding, truncation=True, max_length=self.longest)
        return list(found["input_ids"]) or [self.filler]


def load_transformers(files: ModelFiles) -> ReadyPair:
    """The pair in a folder of `transformers`. Raises UserError for what is no pair that is known here."""
    directory = files.directory
    model = _load_model(directory, files.name)
    name = files.name
    tokenizer = load_tokenizer(directory, name)
    with _quiet(), errors_named(f"the image processor of {name} in {directory} can't be used"):
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        image_input = read_input(processor, name)
    kind = model.config.model_type
    positions = model.config.text_config.max_position_embeddings
    longest = min(int(tokenizer.model_max_length), positions)
    filled = kind in _FILLED
    tokens = TransformersTokens(tokenizer, positions if filled else longest, fixed_length=filled)
    if len(tokens) > model.config.text_config.vocab_size:
        raise UserError(
            f"the tokenizer in {directory} has {len(tokens):,} tokens, but its text encoder knows "
            f"{model.config.text_config.vocab_size:,}; copy the tokenizer that belongs to the model"
        )
    with torch.no_grad(), errors_named(f"{name} can't encode what its processor and its tokenizer prepare"):
        pixels = torch.zeros(1, 3, image_input.height, image_input.width)
        images = TransformersImages(model, _pooled(model.get_image_features(pixel_values=pixels)).shape[1])
        texts = TransformersTexts(model, tokens.filler, masked=not filled)
        numbers = torch.tensor([tokens.encode("")])
        texts.num_features = texts(numbers, torch.tensor([numbers.shape[1]])).shape[1]
    return ReadyPair(images, texts, image_input, tokens).checked(name)


def load_tokenizer(directory: Path, name: str) -> Any:
    """The tokenizer of the model `name` in a folder. Raises UserError when there is none that can be used."""
    if not any(all((directory / file).is_file() for file in each) for each in _VOCABULARIES):
        # Without them the library would make a tokenizer that knows no word.
        expected = ", ".join(" and ".join(each) for each in _VOCABULARIES)
        raise UserError(f"{directory} has no vocabulary; expected one of {expected}, copy the model again")
    with _quiet(), errors_named(f"the tokenizer of {name} in {directory} can't be used"):
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except ImportError as error:  # which says on many lines how to install it
            raise UserError(
                f"the tokenizer of {name} needs a package that is not installed, sentencepiece most likely; run: pip "
                "install sentencepiece"
            ) from error


def read_input(processor: Any, name: str) -> PairInput:
    """The input that an image processor of `transformers` makes. Raises UserError for steps that are not known."""
    given: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_first"}

    def cut(image: Tensor) -> Tensor:
        plain: Tensor = processor(images=image, do_rescale=False, do_normalize=False, **given)["pixel_values"][0]
        return plain

    def own(image: Tensor) -> Tensor:
        pixels: Tensor = processor(images=image, **given)["pixel_values"][0]
        return pixels

    # In the values 0..1 of ImageInput: (value * 255 * factor - offset - mean) / std.
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1.0)
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    means, stds = ([0.0] * 3, [1.0] * 3)
    if processor.do_normalize:
        means, stds = list(processor.image_mean), list(processor.image_std)
    mean, std = [(each + offset) / scale for each in means], [each / scale for each in stds]
    plain = plain_cut(processor)
    if plain is not None:
        with suppress(UserError):
            return checked_input(plain, mean, std, own, name)
    return checked_input(cut, mean, std, own, name)


def plain_cut(processor: Any) -> Callable[[Tensor], Tensor] | None:
    """A processor's resizing and cropping by torchvision alone, to the same bytes; None for steps that aren't these.

    The processor takes a millisecond a picture beside them, of which threads can't take part at a time.
    """
    size = processor.size if processor.do_resize else None
    crop = processor.crop_size if processor.do_center_crop else None
    mode = {2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}.get(int(processor.resample or 0))
    if size is None or mode is None:
        return None
    shorter, fixed = size.get("shortest_edge"), (size.get("height"), size.get("width"))
    if (shorter is None and None in fixed) or size.get("longest_edge") is not None:
        return None

    def cut(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        target = [int(shorter * length / min(height, width)) for length in (height, width)] if shorter else [*fixed]
        seen = F.resize(image, target, mode, antialias=True)
        return seen if crop is None else _center_crop(seen, crop["height"], crop["width"])

    return cut


def _center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """The middle of an image [3, h, w], on black where it is smaller; of an odd margin the lesser half comes first."""
    missing = [max(0, wanted - found) for wanted, found in ((width, image.shape[2]), (height, image.shape[1]))]
    if any(missing):
        image = F.pad(image, [missing[0] // 2, missing[1] // 2, (missing[0] + 1) // 2, (missing[1] + 1) // 2], fill=0)
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def _load_model(directory: Path, name: str) -> Any:
    import transformers

    found = read_json(directory / CONFIG)
    kind = str(found.get("model_type"))
    if kind == "siglip2":
        raise UserError(
            f"{name} is a NaFlex model of SigLIP 2, whose pictures have no one size; use one of a fixed size, such as "
            "google/siglip2-base-patch16-224"
        )
    if kind not in _CLASSES or not hasattr(transformers, _CLASSES[kind]):
        raise UserError(
            f"{name} is a {kind} of transformers; expected a pair of images and texts: {', '.join(sorted(_CLASSES))}"
        )
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory} holds adapters (adapter_config.json); expected whole weights, merge the adapters into them "
            "with merge_and_unload() of peft and save that"
        )
    if not any(any(directory.glob(pattern)) for pattern in WEIGHTS["transformers"]):
        advice = (
            f'if you trust them, transformers.AutoModel.from_pretrained("{directory}").save_pretrained("{directory}")'
        )
        refuse_unsafe_weights(directory, "model.safetensors", f"{advice} writes it beside them")
    model_class = getattr(transformers, _CLASSES[kind])
    with _quiet(), errors_named(f"the model {name} in {directory} can't be used"):
        config = model_class.config_class(**declared_fields(model_class.config_class, found))
        model, loading = model_class.from_pretrained(
            directory,
            config=config,
            # What a configuration asks for could be code that is fetched.
            attn_implementation=attention(model_class),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UserError(f"{directory} lacks {len(missing)} weights ({', '.join(missing[:3])}); copy the model again")
    for module in model.modules():
        if isinstance(module, transformers.PreTrainedModel):
            module.loss_function = None  # it would be looked for, in vain and with a warning, where a model is traced
    return model.eval()


def _pooled(found: Any) -> Tensor:
    """Projected features, which newer versions of the library return within all outputs."""
    pooled: Tensor = getattr(found, "pooler_output", found)
    return pooled


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and warnings."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
