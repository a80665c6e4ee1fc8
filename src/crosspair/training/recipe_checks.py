"""Checks of a recipe: what it takes from the registries is there, and every value is within its range."""

from dataclasses import asdict, fields, replace
from typing import Any

from crosspair.errors import UserError
from crosspair.models.config import ModelConfig
from crosspair.registry import LOSSES, OPTIMIZERS, SAMPLERS, SCHEDULES, Registry
from crosspair.settings import Range, Setting, check_settings
from crosspair.storage.manifest import ManifestError, parse
from crosspair.training.recipe import OptimizerConfig, Recipe, StageConfig, map_losses, name_and_settings

CHOSEN: dict[str, Registry[Any]] = {"sampler": SAMPLERS, "schedule": SCHEDULES}  # fields of a stage
OPTIMIZER_FIELDS = tuple(item.name for item in fields(OptimizerConfig) if item.name != "settings")


def check_recipe(recipe: Recipe) -> Recipe:
    """The recipe with every setting of what it takes from the registries written out.

    Raises UserError for a name or a setting that is not there, a value of a wrong type or out of range.
    """
    losses: dict[str, Any] = {}
    for name, (weight, settings) in map_losses(recipe.loss).items():
        where = f"loss.{name}"
        own = check_settings(LOSSES.entry(name).settings, settings, f"{where}.", also=["weight"])
        if weight is None:
            raise UserError(f"{where} has no weight; set it with --{where} 1 (0 leaves the loss out)")
        setting = Setting(where, float, 1.0, range=Range(at_least=0))
        weight = check_settings({where: setting}, {where: weight}, "")[where]
        if weight > 0:
            losses[name] = {"weight": weight, **own}
    if not losses:
        raise UserError(f"there is no loss; set loss.cmpm or another of {', '.join(LOSSES.names())} above 0")
    optimizer = recipe.optimizer
    known = OPTIMIZERS.entry(optimizer.name).settings
    own = check_settings(known, optimizer.settings, "optimizer.", also=OPTIMIZER_FIELDS)
    checked_recipe = replace(
        recipe,
        loss=losses,
        optimizer=replace(optimizer, settings=own),
        stage1=_check_stage("stage1", recipe.stage1),
        stage2=_check_stage("stage2", recipe.stage2),
    )
    _check_ranges(checked_recipe)
    return checked_recipe


def _check_stage(name: str, stage: StageConfig) -> StageConfig:
    changes: dict[str, Any] = {}
    for kind, registry in CHOSEN.items():
        chosen, settings = name_and_settings(getattr(stage, kind))
        checked = check_settings(registry.entry(chosen).settings, settings, f"{name}.{kind}.")
        changes[kind] = {"name": chosen, **checked} if checked else chosen
    return replace(stage, **changes)


def _check_ranges(recipe: Recipe) -> None:
    """Raise UserError for a value of the right type that is out of range."""
    try:
        parse(ModelConfig, asdict(recipe.model), "model")
    except ManifestError as error:
        raise UserError(str(error)) from error
    if not recipe.stages:
        raise UserError("there is no stage with epochs; set stage1.epochs or stage2.epochs to 1 or more")
    splits = recipe.train_splits
    if not splits or len({*splits}) < len(splits):
        raise UserError(f"train_splits is {splits}; expected at least one split of the data, each once")
    if recipe.validation in splits:
        raise UserError(
            "train_splits has val, on which validation chooses the model; leave val out, or set validation to none, "
            "which keeps the weights of the last epoch"
        )
    if recipe.feature_backend != "auto":
        from crosspair.encode.backends import find_backend

        find_backend(recipe.feature_backend)
    if recipe.histograms < 0 or (recipe.histograms and recipe.tensorboard == "off"):
        raise UserError(
            f"histograms is {recipe.histograms}, tensorboard {recipe.tensorboard}; expected 0 (none) or more, and "
            "tensorboard on, as histograms are written for it alone"
        )
    if recipe.decoded_cache_gb < 0 or recipe.stream.shuffle_buffer < 1:
        raise UserError(
            f"decoded_cache_gb is {recipe.decoded_cache_gb}, stream.shuffle_buffer {recipe.stream.shuffle_buffer}; "
            "expected at least 0, at least 1"
        )
    if recipe.optimizer.bias_rate < 0:
        raise UserError(f"optimizer.bias_rate is {recipe.optimizer.bias_rate}; expected 0 or more")
    lora = recipe.lora
    if lora.rank < 0 or lora.alpha <= 0 or not 0 <= lora.dropout < 1:
        raise UserError(
            f"lora.rank is {lora.rank}, lora.alpha {lora.alpha}, lora.dropout {lora.dropout}; expected at least 0, "
            "above 0, at least 0 and below 1"
        )
    for number, stage in recipe.stages:
        if not 0 < stage.layer_decay <= 1:
            raise UserError(f"stage{number} has layer_decay {stage.layer_decay}; expected above 0, at most 1")
        if stage.image_layers < 0:
            raise UserError(f"stage{number} has image_layers {stage.image_layers}; expected 0 (all) or more")
        if stage.batch_size < 2 or stage.captions_per_image < 0 or not 0 < stage.smallest_crop <= 1:
            raise UserError(
                f"stage{number} has batch_size {stage.batch_size}, captions_per_image {stage.captions_per_image}, "
                f"smallest_crop {stage.smallest_crop}; expected at least 2, at least 0, above 0 and at most 1"
            )
        if stage.shift < 0 or not 0 <= stage.erasing <= 1 or not 0 <= stage.warmup_start <= 1:
            raise UserError(
                f"stage{number} has shift {stage.shift}, erasing {stage.erasing}, warmup_start {stage.warmup_start}; "
                "expected at least 0, and twice from 0 to 1"
            )
        part = stage.mini_batch_size
        if part != 0 and part < 4:  # no part of a batch may be too small for batch norm
            raise UserError(f"stage{number} has mini_batch_size {part}; expected 0 (no parts) or at least 4")
        of_each = name_and_settings(stage.sampler)[1].get("images_per_label", 1)
        if name_and_settings(stage.sampler)[0] == "labels" and (
            stage.batch_size % of_each or stage.batch_size == of_each
        ):
            raise UserError(
                f"stage{number} has batch_size {stage.batch_size} and sampler.images_per_label {of_each}; expected a "
                "batch that holds at least two labels with as many pictures each"
            )
