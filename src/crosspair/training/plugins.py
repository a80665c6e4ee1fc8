"""Plugins that a run uses: recorded in its recipe.yaml and checked when it is resumed.

plugins:
- {name: my_loss.py, checksum: 5e88..., registers: [losses half]}
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosspair.encode.backends import backend_name
from crosspair.encode.storage import plugin_of
from crosspair.errors import UserError
from crosspair.registry import REGISTRIES, Plugin
from crosspair.storage.directories import kind_of
from crosspair.training.recipe import Recipe, name_and_settings
from crosspair.training.recipe_files import read_run_recipe

logger = logging.getLogger(__name__)


def with_plugins(recipe: Recipe) -> Recipe:
    """The recipe with the plugins that register something in it."""
    found: dict[str, dict[str, Any]] = {}
    for kind, name in _used(recipe):
        plugin = _plugin_of(kind, name)
        if plugin is not None:
            facts = {"name": plugin.name, "checksum": plugin.checksum, "registers": []}
            found.setdefault(plugin.name, facts)["registers"].append(f"{kind} {name}")
    return replace(recipe, plugins=list(found.values()))


def check_plugins(run: Path) -> None:
    """Whether the plugins that a RUN was trained with are there to go on.

    A finished model needs those of its encoders alone, which `from_pretrained` looks for. Raises UserError for a plugin
    that is missing; warns of one that has changed since.
    """
    if kind_of(run) != "RUN":
        return
    for kept in read_run_recipe(run).plugins:
        name, needed = kept["name"], [item.split(" ", 1) for item in kept["registers"]]
        for found in (_plugin_of(kind, thing) for kind, thing in needed):
            if found is None:
                package = "==" in name
                advice = "installed; install it again" if package else f"loaded; name it with --plugin {name}"
                raise UserError(f"{run} was trained with the plugin {name}, which is not {advice}")
            if (found.name, found.checksum) != (name, kept["checksum"]):
                logger.warning("%s was trained with the plugin %s, which has changed since", run, name)
                break


def _plugin_of(kind: str, name: str) -> Plugin | None:
    """The plugin that something comes from; None for what is built in, or not there."""
    if kind in ("image_encoders", "text_encoders"):
        return plugin_of(name, "image" if kind == "image_encoders" else "text")
    return REGISTRIES[kind].entry(name).plugin if name in REGISTRIES[kind] else None


def _used(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Kind and name of all that a recipe takes from the registries."""
    found = [("losses", name) for name in recipe.loss]
    found.append(("optimizers", recipe.optimizer.name))
    found.append(("backends", backend_name(recipe.feature_backend)))
    for _, stage in recipe.stages:
        found.append(("samplers", name_and_settings(stage.sampler)[0]))
        found.append(("schedules", name_and_settings(stage.schedule)[0]))
    found += [("image_encoders", part.strip()) for part in recipe.model.image.name.split("+")]
    found.append(("text_encoders", recipe.model.text.name))
    yield from dict.fromkeys(found)
