"""Ready-made pairs of `sentence-transformers`: CLIP, and texts of another model that learned CLIP's space.

The library itself is not needed: what it saves is read here, so that modules.json can't name code to run.
"""

from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from crosspair.encode.locate import CONFIG, MODULES, ModelFiles, read_json, read_json_file, refuse_unsafe_weights
from crosspair.encode.pairs import ReadyPair
from crosspair.encode.pairs_transformers import TransformersTokens, load_tokenizer, load_transformers
from crosspair.encode.pretrained import check_state
from crosspair.encode.pretrained_text import create_transformer
from crosspair.errors import UserError
from crosspair.models.config import TextEncoderConfig
from crosspair.models.transformer_text import TransformerTextEncoder

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "torch.nn.modules.linear.Identity": nn.Identity,
    "torch.nn.modules.activation.Tanh": nn.Tanh,
}
_BOTH_SIDES = {"CLIPModel", "Transformer"}


class ProjectedTexts(nn.Module):
    """A text encoder with layers behind its pooling: tokens [m, t], lengths [m] -> embeddings [m, num_features]."""

    def __init__(self, encoder: TransformerTextEncoder, layers: nn.Sequential, num_features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = layers
        self.num_features = num_features

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        embeddings: Tensor = self.layers(self.encoder(tokens, lengths))
        return embeddings


class LowerCaseTokens(TransformersTokens):
    """A tokenizer that is given every text in lower case."""

    def encode(self, caption: Any, *others: Any) -> list[int]:
        text = caption if isinstance(caption, str) else " ".join(caption)
        return super().encode(text.lower(), *others)


def load_sentence_transformers(files: ModelFiles) -> ReadyPair:
    """The pair in one folder, or the pictures' side of one and the texts' side of another.

    Raises UserError for modules that are not known here and for two models of different dimensions.
    """
    modules = _modules(files.directory)
    kind, directory = modules[0]
    if kind not in _BOTH_SIDES or not _has_both_sides(directory):
        raise UserError(
            f"{files.directory} encodes texts alone; expected CLIP of sentence-transformers, or name both models "
            "as IMAGES+TEXTS: sentence-transformers/clip-ViT-B-32+sentence-transformers/clip-ViT-B-32-multilingual-v1"
        )
    _refuse_unknown(files.directory, [kind for kind, _ in modules[1:]], {"Normalize"})
    pair = load_transformers(ModelFiles(files.name, "transformers", directory))
    if files.texts is None:
        return pair
    texts, tokens = _load_texts(files.texts.directory)
    return ReadyPair(pair.image_encoder, texts, pair.image_input, tokens).checked(files.name)


def _load_texts(directory: Path) -> tuple[ProjectedTexts, TransformersTokens]:
    """A text encoder: a transformer, its pooling, and linear layers."""
    modules = _modules(directory)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or _has_both_sides(modules[0][1]):
        raise UserError(
            f"{directory} has the modules {', '.join(kinds)}; expected a text encoder of sentence-transformers: "
            "Transformer, Pooling, Dense"
        )
    _refuse_unknown(directory, kinds[2:], {"Dense", "Normalize"})
    transformer = modules[0][1]
    settings = read_json(transformer / "sentence_bert_config.json")
    place = str(transformer)
    if not any(transformer.glob("model*.safetensors")):
        advice = f'AutoModel.from_pretrained("{place}").save_pretrained("{place}")'
        advice = f"if you trust them, transformers.{advice} writes it beside them"
        refuse_unsafe_weights(transformer, "model.safetensors", advice)
    encoder, _ = create_transformer(TextEncoderConfig(place, place, _pooling(modules[1][1])))
    layers = [_dense(path) for kind, path in modules if kind == "Dense"]
    dimension = int(layers[-1][0].out_features) if layers else encoder.num_features  # type: ignore[arg-type]
    tokenizer = load_tokenizer(transformer, str(directory))
    longest = settings.get("max_seq_length") or tokenizer.model_max_length
    longest = min(int(longest), int(encoder.architecture["max_position_embeddings"]))
    made = LowerCaseTokens if settings.get("do_lower_case") else TransformersTokens
    return ProjectedTexts(encoder, nn.Sequential(*layers), dimension), made(tokenizer, longest, fixed_length=False)


def _modules(directory: Path) -> list[tuple[str, Path]]:
    """The kinds of a model's modules with their folders, in their order."""
    found = read_json_file(directory / MODULES, list)
    modules = []
    for module in found:
        kind, path = (str(module.get(key, "")) if isinstance(module, dict) else "" for key in ("type", "path"))
        folder = (directory / path).resolve()
        if not kind.startswith("sentence_transformers.") or not folder.is_relative_to(directory.resolve()):
            raise UserError(
                f"{directory / MODULES} names {kind or 'nothing'} in {path or '.'}; expected modules of "
                "sentence_transformers in folders of the model, no code of a model is run"
            )
        modules.append((kind.rpartition(".")[2], directory / path))
    if not modules:
        raise UserError(f"{directory / MODULES} names no module; copy the model again")
    return modules


def _refuse_unknown(directory: Path, kinds: list[str], known: set[str]) -> None:
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise UserError(
            f"{directory} has the module {unknown[0]}, which is not known here; expected {' or '.join(sorted(known))} "
            "behind its encoder"
        )


def _has_both_sides(directory: Path) -> bool:
    return "vision_config" in read_json(directory / CONFIG)


def _pooling(directory: Path) -> Literal["mean", "cls"]:
    found = read_json(directory / CONFIG)
    modes = [str(found.get("pooling_mode", ""))] if "pooling_mode" in found else []
    modes += [key for key, value in found.items() if key.startswith("pooling_mode_") and value is True]
    named = {"mean": "mean", "pooling_mode_mean_tokens": "mean", "cls": "cls", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in named:
        raise UserError(f"{directory} pools by {', '.join(modes) or 'nothing'}; expected mean or cls")
    return cast(Literal["mean", "cls"], named[modes[0]])


def _dense(directory: Path) -> nn.Sequential:
    """A linear layer and what follows it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = read_json(directory / CONFIG)
    activation = _ACTIVATIONS.get(str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")))
    inputs, outputs = settings.get("in_features"), settings.get("out_features")
    sizes_known = all(isinstance(size, int) and 0 < size <= 65_536 for size in (inputs, outputs))
    if activation is None or not sizes_known or settings.get("use_residual"):
        raise UserError(
            f"{directory / CONFIG} configures no layer that is known here; expected in_features, out_features, no "
            f"residual, and an activation_function of {' or '.join(_ACTIVATIONS)}"
        )
    layer = nn.Linear(cast(int, inputs), cast(int, outputs), bias=bool(settings.get("bias", True)))
    weights = directory / "model.safetensors"
    if not weights.is_file():
        refuse_unsafe_weights(
            directory,
            "model.safetensors",
            "if you trust them, sentence_transformers.SentenceTransformer(MODEL).save_pretrained(NEW) writes others",
        )
    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't read {weights} ({error}); copy the model again") from error
    state = {name.removeprefix("linear."): value.float() for name, value in state.items()}
    check_state(layer, state, str(weights))
    layer.load_state_dict(state)
    return nn.Sequential(layer, activation())
