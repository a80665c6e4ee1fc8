"""Where an evaluation comes from, in words for people: model, data, settings, commands, with their checksums."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosspair.training.recipe import Recipe, StageConfig
from crosspair.training.recipe_checks import check_recipe
from crosspair.training.recipe_files import built_in_recipes, changes, load_recipe, read_run_recipe
from crosspair.training.record import command_line, now, read_record
from crosspair.version import __version__

NOT_RECORDED = "not recorded"
# Facts of an evaluation as they are shown, in this order, as far as there are any.
_FACTS = {
    "model": "Model",
    "model_checksum": "Model checksum",
    "embeddings": "Embeddings",
    "image_encoder": "Image encoder",
    "text_encoder": "Text encoder",
    "encoder": "Encoded by",
    "data": "Data",
    "data_format": "Data format",
    "split": "Split",
    "checksum": "Split checksum",
    "labels_checksum": "Checksum of the labels",
    "seed": "Seed",
}


def describe_origin(facts: Mapping[str, Any], run: Path | None = None) -> dict[str, str]:
    """Names and values; a value may have several lines. facts: of an evaluation. run: the RUN of its model, if any.

    Raises UserError where RUN's own files are damaged.
    """
    found = {name: str(facts[key]) for key, name in _FACTS.items() if facts.get(key) not in (None, "")}
    if "protocol_plugin" in facts:
        found["Plugin of the protocol"] = "{name}, checksum {checksum}".format(**facts["protocol_plugin"])
    if run is not None:
        found |= _of_run(run)
    return found | {"Report made by": f"{command_line()}\n{now()}, crosspair {__version__}"}


def _of_run(run: Path) -> dict[str, str]:
    recipe, record = read_run_recipe(run), read_record(run)
    starts = record.starts if record else []
    lines = [f"{start.command}\n{start.date}, crosspair {start.crosspair}" for start in starts]
    base, of = _base(recipe)
    changed = [f"{name}: {_value(own)} ({_value(other)})" for name, (own, other) in changes(recipe, base).items()]
    plugins = [f"{plugin['name']}, checksum {plugin['checksum']}" for plugin in recipe.plugins]
    found = {
        "Trained by": "\n".join(lines) or NOT_RECORDED,
        f"Settings that differ from {of} (in brackets)": "\n".join(changed) or "none",
    }
    return {**found, "Plugins": "\n".join(plugins)} if plugins else found


def _base(recipe: Recipe) -> tuple[Recipe, str]:
    """The recipe that a run's own was made from, and what it is called; the defaults where it is not built in."""
    if recipe.name in built_in_recipes():
        return load_recipe(recipe.name), f"the recipe {recipe.name}"
    defaults = Recipe(recipe.name, recipe.summary, recipe.aims, stage1=StageConfig(epochs=1))
    checked = check_recipe(defaults)  # which asks for an epoch, that the defaults don't have
    return replace(checked, stage1=replace(checked.stage1, epochs=StageConfig().epochs)), "the defaults"


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
