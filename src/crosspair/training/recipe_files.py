"""Recipes as files: built-in ones and YAML, overridden by dotted fields, checked, described and written back."""

import difflib
import re
from dataclasses import asdict, fields, is_dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from crosspair.errors import UserError
from crosspair.training.recipe import LossConfig, Recipe


def built_in_recipes() -> dict[str, Traversable]:
    """Name -> file of every recipe that comes with the package."""
    found: dict[str, Traversable] = {}
    for entry in sorted(files("crosspair.recipes").iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            prefix = "original/" if entry.name == "original" else ""
            children = sorted(entry.iterdir(), key=lambda child: child.name)
            found |= {prefix + child.name[:-5]: child for child in children if child.name.endswith(".yaml")}
    return found


def list_recipes() -> list[str]:
    """The names of the built-in recipes, as `load_recipe` and `train` take them."""
    return list(built_in_recipes())


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
        hint = f"near: {', '.join(near)}" if near else "`crosspair recipes` lists them"
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

    parser = ArgumentParser(prog="crosspair train", exit_on_error=False, add_help=False)
    parser.add_class_arguments(Recipe, "recipe")
    known = {action.dest for action in parser._actions}
    for override in overrides:
        if override.startswith("--"):
            dotted = override[2:].split("=")[0]
            if f"recipe.{dotted}" not in known:
                near = difflib.get_close_matches(dotted, _leaves(Recipe()), n=3, cutoff=0.5)
                hint = f"near: {', '.join(near)}" if near else "`crosspair train --fields` lists them"
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
        if stage.image_layers < 0:
            raise UserError(
                f"recipe {name}: stage{number} has image_layers {stage.image_layers}; expected 0 (all) or more"
            )
        if stage.batch_size < 2 or stage.captions_per_image < 0 or not 0 < stage.smallest_crop <= 1:
            raise UserError(
                f"recipe {name}: stage{number} has batch_size {stage.batch_size}, captions_per_image "
                f"{stage.captions_per_image}, smallest_crop {stage.smallest_crop}; expected at least 2, at least 0, "
                "above 0 and at most 1"
            )
        part = stage.mini_batch_size
        if part != 0 and part < 4:  # no part of a batch may be too small for batch norm
            raise UserError(
                f"recipe {name}: stage{number} has mini_batch_size {part}; expected 0 (no parts) or at least 4"
            )
        of_each = stage.images_per_label
        if stage.sampler == "identities" and (of_each < 1 or stage.batch_size % of_each or stage.batch_size == of_each):
            raise UserError(
                f"recipe {name}: stage{number} has batch_size {stage.batch_size} and images_per_label {of_each}; "
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
