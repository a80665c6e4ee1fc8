"""Recipes as files: built-in ones and YAML, over one another, overridden by dotted fields, and written back."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from crosspair.errors import UserError
from crosspair.registry import OPTIMIZERS
from crosspair.training.recipe import Recipe, StageConfig, map_losses, name_and_settings
from crosspair.training.recipe_checks import CHOSEN, OPTIMIZER_FIELDS, check_recipe

_WRITTEN_BY_A_RUN = "plugins"
_OF_ONE_RECIPE = {"name", "summary", "aims"}  # what a recipe that extends another doesn't take from it
_LISTS = {
    "train_splits",
    "stage1.freeze",
    "stage2.freeze",
    "restore.include",
    "restore.exclude",
}  # fields that the command line takes as names between commas


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


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A built-in recipe or a YAML file, with overrides such as ["--stage1.epochs", "3", "--loss.triplet.margin=0.1"].

    Raises UserError for an unknown recipe, field, loss or setting (with the nearest names), and for a value of a wrong
    type or out of range.
    """
    try:
        return check_recipe(_read(name, overrides))
    except UserError as error:
        if str(error).startswith(("recipe ", "unknown recipe", "can't read")):
            raise
        raise UserError(f"recipe {name}: {error}") from error


def read_run_recipe(run: Path) -> Recipe:
    """The recipe of a RUN, to look at: what its plugins registered stays as it is written, loaded or not."""
    return _read(str(run / "recipe.yaml"), ())


def describe_recipes() -> str:
    """The built-in recipes: name and summary, and below them what each aims at."""
    lines = []
    for name, file in built_in_recipes().items():
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        lines += [f"{name}: {settings['summary']}", f"    aims at {settings['aims']}"]
    return "\n".join(lines)


def save_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(_nested(recipe), sort_keys=False, allow_unicode=True, width=120)


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Dotted names of the fields in which two recipes differ, leaving out what their runs wrote."""
    return list(changes(one, other))


def changes(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The fields in which two recipes differ, by dotted name, with both values; None where one lacks the field."""
    flat = [_flat(_nested(recipe)) for recipe in (one, other)]
    names = [name for name in {**flat[0], **flat[1]} if name != _WRITTEN_BY_A_RUN]
    missing = object()
    differ = [name for name in names if flat[0].get(name, missing) != flat[1].get(name, missing)]
    return {name: (flat[0].get(name), flat[1].get(name)) for name in differ}


def _read_yaml(name: str, under: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a recipe's file over those of the recipe that it `extends`. under: those that extend it."""
    settings = _one_file(name)
    if "extends" not in settings:
        return settings
    base = settings.pop("extends")
    if not isinstance(base, str):
        raise UserError(f"{name} extends {base!r}; expected a built-in name or a YAML file")
    if base.endswith((".yaml", ".yml")):
        base = str(Path(name).parent / base)
    if base in (*under, name):
        raise UserError(f"{name} extends {base}, which extends it; take one of the two out")
    below = {key: value for key, value in _read_yaml(base, (*under, name)).items() if key not in _OF_ONE_RECIPE}
    return _over(below, settings)


def _over(below: dict[str, Any], above: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields over others; those of a part are put together, what a registry decides is taken whole."""
    found = dict(below)
    for key, value in above.items():
        whole = prefix + key == "loss" or key in CHOSEN
        both = isinstance(value, dict) and isinstance(below.get(key), dict) and not whole
        found[key] = _over(below[key], value, f"{prefix}{key}.") if both else value
    return found


def _one_file(name: str) -> dict[str, Any]:
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


def _read(name: str, overrides: Iterable[str]) -> Recipe:
    """A recipe whose fields have their types; what it takes from the registries is not looked up."""
    settings = _read_yaml(name)
    settings.setdefault("name", name if name in built_in_recipes() else Path(name).stem)
    open_fields = _take_open_fields(settings)
    unknown = _unknown_field(settings, Recipe())
    if unknown:
        raise UserError(f"recipe {name}: {unknown}")
    pairs = sorted(_pairs(overrides), key=lambda pair: pair[0].count("."))  # a name before the settings of its own
    plain = [(dotted, value) for dotted, value in pairs if not _override_open(open_fields, dotted, value)]
    recipe = _parse(settings, plain, name)
    recipe.loss = open_fields["loss"]
    recipe.optimizer.settings = open_fields["optimizer"]
    recipe.plugins = open_fields[_WRITTEN_BY_A_RUN]
    for (stage, kind), chosen in open_fields["stages"].items():
        setattr(getattr(recipe, stage), kind, chosen)
    return recipe


def _take_open_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """Remove from a YAML file's fields, and return, those that a registry decides."""
    found: dict[str, Any] = {
        "loss": settings.pop("loss", Recipe().loss),
        "optimizer": {},
        "stages": {},
        _WRITTEN_BY_A_RUN: settings.pop(_WRITTEN_BY_A_RUN, []),
    }
    if not isinstance(found["loss"], dict):
        raise UserError(f"field 'loss' holds {found['loss']!r}; expected the weights of losses as name: value")
    found["loss"] = {str(name): {"weight": weight, **own} for name, (weight, own) in map_losses(found["loss"]).items()}
    if isinstance(settings.get("optimizer"), dict):
        optimizer = settings["optimizer"] = dict(settings["optimizer"])
        found["optimizer"] = {name: optimizer.pop(name) for name in [*optimizer] if name not in OPTIMIZER_FIELDS}
    for stage in ("stage1", "stage2"):
        if isinstance(settings.get(stage), dict):
            settings[stage] = dict(settings[stage])
            for kind in CHOSEN:
                if kind in settings[stage]:
                    chosen = settings[stage].pop(kind)
                    if not isinstance(chosen, str) and not (isinstance(chosen, dict) and "name" in chosen):
                        raise UserError(
                            f"field '{stage}.{kind}' holds {chosen!r}; expected a name, or name: and settings"
                        )
                    found["stages"][stage, kind] = chosen
    return found


def _pairs(overrides: Iterable[str]) -> list[tuple[str, str]]:
    """Dotted names and values of `--name value` and `--name=value`."""
    found = []
    rest = iter(overrides)
    for item in rest:
        name, equals, value = item.partition("=")
        if not name.startswith("--"):
            raise UserError(f"'{item}' is no field; expected --field value")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise UserError(f"{name} has no value; expected {name} VALUE")
        found.append((name[2:], value))
    return found


def _override_open(open_fields: dict[str, Any], dotted: str, value: str) -> bool:
    """Set a field that a registry decides; False for any other."""
    first, _, rest = dotted.partition(".")
    name, _, setting = rest.partition(".")
    if first == "loss" and name:
        open_fields["loss"].setdefault(name, {})[setting or "weight"] = value
    elif dotted == "optimizer.name":
        known = OPTIMIZERS.entry(value).settings
        open_fields["optimizer"] = {name: own for name, own in open_fields["optimizer"].items() if name in known}
        return False
    elif first == "optimizer" and name and name not in OPTIMIZER_FIELDS:
        open_fields["optimizer"][name] = value
    elif first in ("stage1", "stage2") and name in CHOSEN:
        before = open_fields["stages"].get((first, name), getattr(StageConfig(), name))
        chosen, settings = name_and_settings(before)
        after = {"name": chosen, **settings, setting: value} if setting else {"name": value}
        open_fields["stages"][first, name] = after
    else:
        return False
    return True


def _parse(settings: dict[str, Any], overrides: list[tuple[str, str]], name: str) -> Recipe:
    """Let jsonargparse check types and apply the overrides."""
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(prog="crosspair train", exit_on_error=False, add_help=False)
    parser.add_class_arguments(Recipe, "recipe", skip={"loss", _WRITTEN_BY_A_RUN})
    known = {action.dest for action in parser._actions}
    for dotted, _ in overrides:
        if f"recipe.{dotted}" not in known:
            near = difflib.get_close_matches(dotted, _leaves(Recipe()), n=3, cutoff=0.5)
            hint = f"near: {', '.join(near)}" if near else "`crosspair train --fields` lists them"
            raise UserError(f"unknown field '{dotted}'; {hint}")
    try:
        defaults = parser.parse_object({"recipe": settings})
        arguments = [f"--recipe.{dotted}={_listed(dotted, value)}" for dotted, value in overrides]
        parsed: Namespace = parser.parse_args(arguments, namespace=defaults)
        recipe: Recipe = parser.instantiate_classes(parsed).recipe
    except (ArgumentError, ValueError, TypeError) as error:
        reason = " ".join(str(error).replace("recipe.", "").split())
        raise UserError(f"recipe {name}: {reason}") from error
    return recipe


def _listed(dotted: str, value: str) -> str:
    """A list of names may be written train,val on the command line."""
    if dotted not in _LISTS or value.startswith("["):
        return value
    return json.dumps([part.strip() for part in value.split(",")])


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


def _nested(recipe: Recipe) -> dict[str, Any]:
    """The recipe as its YAML holds it."""
    found = asdict(recipe)
    found["optimizer"] |= found["optimizer"].pop("settings")
    if not recipe.plugins:
        del found[_WRITTEN_BY_A_RUN]
    return found


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _leaves(value: Any, prefix: str = "") -> list[str]:
    found = []
    for item in fields(value):
        child = getattr(value, item.name)
        found += _leaves(child, f"{prefix}{item.name}.") if is_dataclass(child) else [prefix + item.name]
    return found
