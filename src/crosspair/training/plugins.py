"""Which plugins a run uses, kept in its recipe.yaml, and whether they are there again when the run is used.

plugins:
- {name: my_loss.py, checksum: 5e88..., registers: [losses half]}
"""

import logging
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosspair.errors import UserError
from crosspair.registry import (
    IMAGE_ENCODERS,
    LOSSES,
    OPTIMIZERS,
    REGISTRIES,
    SAMPLERS,
    SCHEDULES,
    TEXT_ENCODERS,
    Registry,
)
from crosspair.training.recipe import Recipe, name_and_settings
from crosspair.training.recipe_files import read_run_recipe

logger = logging.getLogger(__name__)

ENCODERS = ("image_encoders", "text_encoders")  # what a model needs without its training


def with_plugins(recipe: Recipe) -> Recipe:
    """The recipe with the plugins that register something in it."""
    found: dict[str, dict[str, Any]] = {}
    for registry, name in _used(recipe):
        plugin = registry.entry(name).plugin if name in registry else None
        if plugin is not None:
            facts = {"name": plugin.name, "checksum": plugin.checksum, "registers": []}
            found.setdefault(plugin.name, facts)["registers"].append(f"{registry.plural} {name}")
    return replace(recipe, plugins=list(found.values()))


def check_plugins(run: Path, kinds: Collection[str] = tuple(REGISTRIES)) -> None:
    """Whether what the plugins of a RUN registered is there, of the kinds that are needed.

    Raises UserError, naming the plugin, when something is not there. Warns when the plugin has changed since.
    """
    if not (run / "recipe.yaml").is_file():
        return
    for kept in read_run_recipe(run).plugins:
        for kind, name in (item.split() for item in kept["registers"]):
            if kind not in kinds:
                continue
            registry, plugin = REGISTRIES[kind], kept["name"]
            if name not in registry:
                installed = "==" in plugin
                state, advice = (
                    ("installed", "install it again") if installed else ("loaded", f"name it with --plugin {plugin}")
                )
                raise UserError(f"{run} was trained with the plugin {plugin}, which is not {state}; {advice}")
            found = registry.entry(name).plugin
            if found is None or (found.name, found.checksum) != (plugin, kept["checksum"]):
                now = "other code" if found is None or found.name == plugin else found.name
                logger.warning(
                    "%s was trained with the plugin %s; its %s '%s' is %s now", run, plugin, registry.kind, name, now
                )


def _used(recipe: Recipe) -> Iterator[tuple[Registry[Any], str]]:
    yield from ((LOSSES, name) for name in recipe.loss)
    yield OPTIMIZERS, recipe.optimizer.name
    for _, stage in recipe.stages:
        yield SAMPLERS, name_and_settings(stage.sampler)[0]
        yield SCHEDULES, name_and_settings(stage.schedule)[0]
    yield IMAGE_ENCODERS, recipe.model.image.name
    yield TEXT_ENCODERS, recipe.model.text.name
