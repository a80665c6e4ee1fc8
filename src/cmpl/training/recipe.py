"""A training run as nested dataclasses: read from YAML, overridden by dotted fields, written back as resolved."""

import difflib
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import yaml

from cmpl.errors import UserError
from cmpl.models.config import ModelConfig


@dataclass
class LossConfig:
    """Which losses, and how they are weighted."""

    cmpm: float = 1.0
    """Weight of cross-modal projection matching; 0 leaves it out."""
    cmpc: float = 1.0
    """Weight of cross-modal projection classification; 0 leaves it out."""
    infonce: float = 0.0
    """Weight of InfoNCE (CLIP)."""
    sdm: float = 0.0
    """Weight of similarity distribution matching (IRRA)."""
    triplet: float = 0.0
    """Weight of the triplet loss with hardest negatives (VSE++)."""
    siglip: float = 0.0
    """Weight of the sigmoid loss (SigLIP)."""
    cmpm_scale: float | None = None
    """null projects as the paper does; a number gives both embeddings this length first, and learns it (up to 100)."""
    cmpm_ratio_epsilon: float = 0.0
    """Added to p / q inside the matching's logarithm; the original adds 1e-8."""
    cmpm_products: Literal["float32", "bf16"] = "float32"
    """Of batches of over a million pairs (on a CPU): bf16 nearly halves the time, with gradients off by about 0.4 %."""
    cmpc_classes: int = 0
    """Classes that the classification draws a step beside the batch's own, for fast approximate steps; 0 takes all."""
    label_smoothing: float = 0.0
    """Of the classification's targets."""
    infonce_temperature: float = 0.07
    """At the start, if it is learned; at least 0.01."""
    infonce_learned: bool = True
    """Learn InfoNCE's temperature."""
    sdm_temperature: float = 0.02
    triplet_margin: float = 0.2
    """By how much a match's cosine should exceed that of the hardest negative."""
    siglip_temperature: float = 0.1
    """At the start; learned."""
    siglip_bias: float = -10.0
    """At the start; learned."""

    @property
    def weights(self) -> dict[str, float]:
        """The losses that take part, each with its weight."""
        every = {
            "cmpm": self.cmpm,
            "cmpc": self.cmpc,
            "infonce": self.infonce,
            "sdm": self.sdm,
            "triplet": self.triplet,
            "siglip": self.siglip,
        }
        return {name: weight for name, weight in every.items() if weight > 0}


@dataclass
class StageConfig:
    """One stage of training."""

    epochs: int = 0
    """Passes over the training pictures; 0 leaves the stage out."""
    freeze_image_encoder: bool = False
    """Keep the image encoder's weights, batch-norm statistics and mode; its features are then computed once."""
    move_batch_norm: bool = False
    """Let a frozen image encoder's batch norm use and follow each batch, as the original does (no features kept)."""
    fixed_batch_norm: bool = False
    """Keep the image encoder's batch norm in evaluation mode while its weights train."""
    freeze_text_encoder: bool = False
    """Keep the text encoder's weights, and its dropout off."""
    batch_size: int = 32
    """Pictures in a batch, of all processes together."""
    micro_batch: int = 0
    """Pictures encoded at a time, while the loss sees the whole batch; saves memory for one more forward; 0: all."""
    sampler: Literal["shuffled", "identities"] = "shuffled"
    """identities: a batch holds batch_size / pictures_per_identity labels, with that many pictures of each."""
    pictures_per_identity: int = 4
    """For sampler identities; a label that has fewer pictures gives all of them."""
    captions_per_picture: int = 1
    """Captions drawn for each picture of a batch; 0 takes all."""
    epoch_covers: Literal["pictures", "captions"] = "captions"
    """An epoch draws every picture once, or (as the original's does) as often as it takes to read every caption."""
    learning_rate: float = 2e-4
    image_learning_rate: float | None = None
    """Of the image encoder; null takes learning_rate."""
    text_learning_rate: float | None = None
    """Of the text encoder; null takes learning_rate."""
    layer_decay: float = 1.0
    """The rate of an encoder's k-th layer from its top is multiplied by this to the power of k."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate over the stage; cosine falls to 0."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    smallest_crop: float = 1.0
    """Training pictures are cropped to a random share of their area, from this to 1; 1 leaves them whole."""


@dataclass
class OptimizerConfig:
    """Adam and what goes with it."""

    name: Literal["adam", "adamw", "tensorflow-adam"] = "adam"
    """adam: weight decay through the gradient; adamw: decoupled; tensorflow-adam: adam with TensorFlow's epsilon."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 4e-5
    decay: Literal["weights", "convolutions"] = "weights"
    """What decays: all weight matrices and kernels, or only the original's choice (convolutions and projections)."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; null does not clip."""


@dataclass
class AveragesConfig:
    """Exponential moving averages of the weights, evaluated beside them."""

    decay: float = 0.9999
    """After a warm-up of (1 + step) / (10 + step); 0 keeps no averages."""
    parts: Literal["model", "image"] = "model"
    """The whole model, or (the original) all but the text encoder."""
    before_update: bool = False
    """Average the weights that a step starts from, as the original does, rather than those it ends with."""


@dataclass
class LoraConfig:
    """Adapters: small matrices that train beside an encoder's frozen weights, and are added to them in RUN/model."""

    rank: int = 0
    """Rows of the adapters; 0 trains the encoders' own weights."""
    alpha: float = 16.0
    """What an adapter adds is multiplied by alpha / rank."""
    dropout: float = 0.0
    """On what an adapter reads, in training."""
    encoders: Literal["both", "image", "text"] = "both"
    """Which have adapters; the other one trains as its stage says."""
    layers: Literal["attention", "all-linear"] = "attention"
    """Which linear layers have one."""


@dataclass
class StreamConfig:
    """Training data that is streamed."""

    shuffle_buffer: int = 5000
    """Pictures in memory to shuffle from, over all processes; shards come in random order besides."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a sample that can't be used: stop before training, or leave it out."""


@dataclass
class Recipe:
    """Everything that decides a training run."""

    name: str = "custom"
    summary: str = ""
    """One line for `cmpl recipes`."""
    aims: str = ""
    """The published or measured number that the run aims at."""
    seed: int = 0
    mirror: bool = True
    """Mirror each training picture from left to right with probability 1/2."""
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    """Of the encoders; embeddings, losses and weights stay in float32 (or float64). auto: bf16-mixed where the device
    multiplies in bfloat16, else 32-true."""
    feature_runtime: Literal["auto", "torch", "openvino-f32", "openvino-bf16"] = "auto"
    """What computes a frozen encoder's features. auto: on a CPU the fastest at hand that is exact enough."""
    channels_last: bool = True
    """Pictures with their colours beside each other rather than in planes: faster convolutions on CPUs and GPUs."""
    compile: bool = False
    """Have torch.compile make the image encoder's kernels, which takes minutes; on a CPU its steps were slower."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Processes on each node, one a device, that share every batch; under torchrun its own number."""
    nodes: int = 1
    """Machines that take part; under torchrun its own number."""
    sync_batch_norm: bool = False
    """With several processes: batch norm sees the whole batch rather than each process's part."""
    workers: int = -1
    """Processes that decode pictures; -1 takes one a core on a GPU and none on the CPU."""
    decoded_cache_gb: float = 0.0
    """Disk for decoded pictures, kept between epochs and runs in the user's cache; 0 decodes in every epoch."""
    log_every: int = 10
    """Steps between two rows of metrics."""
    checkpoint_minutes: float = 10.0
    """Time between two checkpoints inside an epoch; one is written after every epoch."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    averages: AveragesConfig = field(default_factory=AveragesConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    stage1: StageConfig = field(default_factory=lambda: StageConfig(freeze_image_encoder=True))
    stage2: StageConfig = field(default_factory=StageConfig)

    @property
    def stages(self) -> list[tuple[int, StageConfig]]:
        """Number and settings of the stages that have epochs."""
        return [(number, stage) for number, stage in ((1, self.stage1), (2, self.stage2)) if stage.epochs > 0]


def built_in_recipes() -> dict[str, Traversable]:
    """Name -> file of every recipe that comes with the package."""
    found: dict[str, Traversable] = {}
    for entry in sorted(files("cmpl.recipes").iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            prefix = "original/" if entry.name == "original" else ""
            children = sorted(entry.iterdir(), key=lambda child: child.name)
            found |= {prefix + child.name[:-5]: child for child in children if child.name.endswith(".yaml")}
    return found


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """A built-in recipe or a YAML file, with overrides such as ["--stage1.epochs", "3"].

    Raises UserError for an unknown recipe (with the nearest names), an unknown field or a value of the wrong type.
    """
    settings = _read_yaml(name)
    settings.setdefault("name", name if name in built_in_recipes() else Path(name).stem)
    unknown = _unknown_field(settings, Recipe())
    if unknown:
        raise UserError(f"recipe {name}: {unknown}")
    return _check(_parse(settings, overrides or [], name), name)


def describe_recipes() -> str:
    """The built-in recipes: name and summary, and below them what each aims at."""
    lines = []
    for name, file in built_in_recipes().items():
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        lines += [f"{name}: {settings['summary']}", f"    aims at {settings['aims']}"]
    return "\n".join(lines)


def save_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True, width=120)


def differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two recipes differ."""
    found: list[str] = []
    for item in fields(one):
        values = getattr(one, item.name), getattr(other, item.name)
        if is_dataclass(values[0]):
            found += differences(*values, f"{prefix}{item.name}.")
        elif values[0] != values[1]:
            found.append(prefix + item.name)
    return found


def field_help() -> str:
    """Every field with its default and what it means, a line each."""
    return "\n".join(_describe(Recipe(), ""))


def _read_yaml(name: str) -> dict[str, Any]:
    recipes = built_in_recipes()
    if name in recipes:
        text = recipes[name].read_text(encoding="utf-8")
    elif name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"can't read the recipe {name} ({error}); give a built-in name or a YAML file") from error
    else:
        near = difflib.get_close_matches(name, recipes, n=3, cutoff=0.4)
        hint = f"near: {', '.join(near)}" if near else "`cmpl recipes` lists them"
        raise UserError(f"unknown recipe '{name}'; expected a built-in name or a .yaml file; {hint}")
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML ({' '.join(str(error).split())}); mend it and run again") from error
    if not isinstance(settings, dict):
        raise UserError(f"{name} holds a {type(settings).__name__}; expected a recipe's fields as name: value")
    return settings


def _parse(settings: dict[str, Any], overrides: list[str], name: str) -> Recipe:
    """Let jsonargparse check types and apply the overrides."""
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(prog="cmpl train", exit_on_error=False, add_help=False)
    parser.add_class_arguments(Recipe, "recipe")
    known = {action.dest for action in parser._actions}
    for override in overrides:
        if override.startswith("--"):
            dotted = override[2:].split("=")[0]
            if f"recipe.{dotted}" not in known:
                near = difflib.get_close_matches(dotted, _leaves(Recipe()), n=3, cutoff=0.5)
                hint = f"near: {', '.join(near)}" if near else "`cmpl train --fields` lists them"
                raise UserError(f"unknown field '{dotted}'; {hint}")
    arguments = [re.sub("^--", "--recipe.", override) for override in overrides]
    try:
        defaults = parser.parse_object({"recipe": settings})
        parsed: Namespace = parser.parse_args(arguments, namespace=defaults)
        recipe: Recipe = parser.instantiate_classes(parsed).recipe
    except (ArgumentError, ValueError, TypeError) as error:
        reason = " ".join(str(error).replace("recipe.", "").split())
        raise UserError(f"recipe {name}: {reason}") from error
    return recipe


def _check(recipe: Recipe, name: str) -> Recipe:
    """What types alone don't say."""
    if not recipe.stages:
        raise UserError(f"recipe {name} has no stage with epochs; set stage1.epochs or stage2.epochs to 1 or more")
    _check_losses(recipe.loss, name)
    if recipe.decoded_cache_gb < 0 or recipe.stream.shuffle_buffer < 1:
        raise UserError(
            f"recipe {name} has decoded_cache_gb {recipe.decoded_cache_gb}, stream.shuffle_buffer "
            f"{recipe.stream.shuffle_buffer}; expected at least 0, at least 1"
        )
    lora = recipe.lora
    if lora.rank < 0 or lora.alpha <= 0 or not 0 <= lora.dropout < 1:
        raise UserError(
            f"recipe {name} has lora.rank {lora.rank}, lora.alpha {lora.alpha}, lora.dropout {lora.dropout}; expected "
            "at least 0, above 0, at least 0 and below 1"
        )
    for number, stage in recipe.stages:
        if not 0 < stage.layer_decay <= 1:
            raise UserError(
                f"recipe {name}: stage{number} has layer_decay {stage.layer_decay}; expected above 0, at most 1"
            )
        if stage.batch_size < 2 or stage.captions_per_picture < 0 or not 0 < stage.smallest_crop <= 1:
            raise UserError(
                f"recipe {name}: stage{number} has batch_size {stage.batch_size}, captions_per_picture "
                f"{stage.captions_per_picture}, smallest_crop {stage.smallest_crop}; expected at least 2, at least 0, "
                "above 0 and at most 1"
            )
        if stage.micro_batch != 0 and stage.micro_batch < 4:  # no part of a batch may be too small for batch norm
            raise UserError(
                f"recipe {name}: stage{number} has micro_batch {stage.micro_batch}; expected 0 (no parts) or at least 4"
            )
        of_each = stage.pictures_per_identity
        if stage.sampler == "identities" and (of_each < 1 or stage.batch_size % of_each or stage.batch_size == of_each):
            raise UserError(
                f"recipe {name}: stage{number} has batch_size {stage.batch_size} and pictures_per_identity {of_each}; "
                "expected a batch that holds at least two labels with as many pictures each"
            )
    return recipe


def _check_losses(loss: LossConfig, name: str) -> None:
    if not loss.weights:
        known = ", ".join(f"loss.{known}" for known in ("cmpm", "cmpc", "infonce", "sdm", "triplet"))
        raise UserError(f"recipe {name} has no loss; set {known} or loss.siglip above 0")
    scale, ratio_epsilon = loss.cmpm_scale, loss.cmpm_ratio_epsilon
    checks = [
        ("cmpm_scale", scale is None or 0 < scale <= 100, "null, or above 0 and at most 100"),
        ("cmpm_ratio_epsilon", ratio_epsilon == 0 or scale is None, "0 where loss.cmpm_scale is set"),
        ("infonce_temperature", loss.infonce_temperature >= 0.01, "at least 0.01"),
        ("sdm_temperature", loss.sdm_temperature > 0, "above 0"),
        ("triplet_margin", loss.triplet_margin >= 0, "at least 0"),
        ("siglip_temperature", loss.siglip_temperature > 0, "above 0"),
    ]
    for setting, allowed, expected in checks:
        if not allowed:
            raise UserError(f"recipe {name}: loss.{setting} is {getattr(loss, setting)}; expected {expected}")


def _unknown_field(settings: dict[str, Any], known: Any, prefix: str = "") -> str | None:
    names = {item.name: getattr(known, item.name) for item in fields(known)}
    for key, value in settings.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f", did you mean '{prefix}{near[0]}'?" if near else f"; expected one of {', '.join(names)}"
            return f"unknown field '{prefix}{key}'{hint}"
        if is_dataclass(names[key]):
            if not isinstance(value, dict):
                return f"field '{prefix}{key}' holds {value!r}; expected name: value pairs"
            problem = _unknown_field(value, names[key], f"{prefix}{key}.")
            if problem:
                return problem
    return None


def _leaves(value: Any, prefix: str = "") -> list[str]:
    found = []
    for item in fields(value):
        child = getattr(value, item.name)
        found += _leaves(child, f"{prefix}{item.name}.") if is_dataclass(child) else [prefix + item.name]
    return found


def _describe(value: Any, prefix: str) -> list[str]:
    from docstring_parser import parse_from_object

    meaning = {param.arg_name: param.description or "" for param in parse_from_object(type(value)).params}
    lines = []
    for item in fields(value):
        child = getattr(value, item.name)
        if is_dataclass(child):
            lines += _describe(child, f"{prefix}{item.name}.")
        else:
            text = " ".join(meaning.get(item.name, "").split())
            lines.append(
                f"  --{prefix}{item.name} {child!r}\n      {text}" if text else f"  --{prefix}{item.name} {child!r}"
            )
    return lines
