"""The training loop: stages, epochs, steps; validation, checkpoints and the best model on the way.

result = train("flickr8k-lite0", "DATA", "RUN")
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from crosspair.data.batching import Split, TrainingSplit, load_batches
from crosspair.data.dataset import open_data
from crosspair.data.splits import GivenData, ImageTextDataset, RunSplits, TrainingData, run_splits
from crosspair.encode.model import DualEncoder
from crosspair.encode.split import embed_split
from crosspair.evaluation.metrics import evaluate_retrieval
from crosspair.progress import progress_bar
from crosspair.storage.files import refuse_occupied, remove_leftovers, write_text
from crosspair.training.callbacks import Callback, Progress, RunResult
from crosspair.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from crosspair.training.distributed import counted_processes, launch
from crosspair.training.ema import WeightEMA
from crosspair.training.interruption import Interrupted, Noted, raise_if_stopped, signals_noted
from crosspair.training.log import RunLog, check_tensorboard, plain, quiet_libraries, speed_and_memory
from crosspair.training.machine import keep_memory, settled
from crosspair.training.plugins import with_plugins
from crosspair.training.recipe import Recipe
from crosspair.training.recipe_checks import check_recipe
from crosspair.training.recipe_files import load_recipe, save_recipe
from crosspair.training.record import record_start
from crosspair.training.run import check_same_run, describe_source, model_card
from crosspair.training.step import check_finite
from crosspair.training.trainer import Stage, Trainer, build_stage, build_trainer, epoch_plan

GivenSplits = Mapping[str, TrainingSplit | ImageTextDataset | str | Path]


def train(
    recipe: Recipe | str | Path,
    data: TrainingData | GivenSplits | str | Path,
    run: str | Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> RunResult:
    """Run all stages of a recipe; the best model on val is then in RUN/model (the last one with `validation: none`).

    recipe: a built-in name (`list_recipes`), a YAML file, or a Recipe.
    data: a DATA directory or what `open_data` gives, or splits by name, {"train": ..., "val": ...}, each a dataset of
        (image, captions, label) as `crosspair.data.from_dataset` takes it, a stream, or a DATA directory.
    run: the directory to write; new or empty, but to resume.
    resume: go on from RUN's newest whole checkpoint (or start, if there is none yet).
    callbacks: called on the way. progress: show bars, and a line for every validation.
    Raises UserError for what the user can mend, Interrupted on SIGINT and SIGTERM, and what a callback raises.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    run = Path(run)
    recipe = check_recipe(recipe)
    splits = run_splits(_opened(data, progress), recipe.train_splits, validate=recipe.validation != "none")
    check_tensorboard(recipe.tensorboard, recipe.histograms)
    recipe = settled(counted_processes(with_plugins(recipe)))
    with quiet_libraries():
        processes = launch(recipe)
        if processes.fabric.device.type == "cpu":
            keep_memory()
        processes.once(lambda: _check_directory(recipe, splits, run, resume))
        checkpoint = load_checkpoint(run / "checkpoints") if resume else None
        options = {"callbacks": callbacks, "show": progress, "with_weights": checkpoint is None}
        trainer = build_trainer(recipe, splits, run, processes, **options)  # type: ignore[arg-type]
        # Only now is it known that the run can start: a failed start leaves nothing behind.
        processes.once(lambda: _write_start(run, recipe))
        result = _run(trainer, describe_source(splits), checkpoint)
        processes.leave()
        return result


def _opened(data: TrainingData | GivenSplits | str | Path, progress: bool) -> TrainingData:
    if isinstance(data, str | Path):
        return open_data(data)
    return GivenData(data, progress=progress) if isinstance(data, Mapping) else data


def _check_directory(recipe: Recipe, splits: RunSplits, run: Path, resume: bool) -> None:
    if resume:
        check_same_run(recipe, splits, run)
        remove_leftovers(run)
        remove_leftovers(run / "checkpoints")
    else:
        for path in run.glob(".recipe.yaml.*"):  # all that a start leaves when it is killed before it knows that it can
            path.unlink()
        refuse_occupied(run, "a training run")


def _write_start(run: Path, recipe: Recipe) -> None:
    write_text(run / "recipe.yaml", save_recipe(recipe))
    record_start(run)


def _run(trainer: Trainer, source: dict[str, Any], checkpoint: Checkpoint | None) -> RunResult:
    """All stages, or from a checkpoint on the rest of them. source: for the first row of metrics.jsonl."""
    if checkpoint is not None:
        _restore(trainer, checkpoint)
    progress = trainer.progress
    trainer.processes.once(lambda: _open_log(trainer))
    with trainer.log or nullcontext():
        if progress.step == 0:
            trainer.write({"kind": "start", "step": 0, **source})
        resumed = progress.stage if checkpoint is not None else None
        for number, config in trainer.recipe.stages:
            if number >= progress.stage:
                stage = build_stage(trainer, number, config, checkpoint if number == resumed else None)
                _run_stage(trainer, stage)
        facts = ("stage", "epoch", "weights") if trainer.val is None else ("rsum", "weights")
        best = {name: progress.best[name] for name in facts}
        trainer.write({"kind": "end", "step": progress.step, **best})
        result = RunResult(trainer.run, progress.best)
        trainer.tell("on_end", result)
    return result


def _open_log(trainer: Trainer) -> None:
    validated, tensorboard = trainer.progress.batch == 0, trainer.recipe.tensorboard
    trainer.log = RunLog(trainer.run, trainer.progress.step, validated=validated, tensorboard=tensorboard)


def _run_stage(trainer: Trainer, stage: Stage) -> None:
    """The epochs of a stage that are not done, each with its validation and checkpoint."""
    progress, processes, epochs = trainer.progress, trainer.processes, stage.config.epochs
    if progress.stage != stage.number:
        progress.stage, progress.epoch, progress.batch = stage.number, 0, 0
    stage.bar = progress_bar(
        total=stage.batches * epochs,
        initial=progress.epoch * stage.batches + progress.batch,
        unit="step",
        disable=not (trainer.show and processes.first),
    )
    with stage.bar, signals_noted() as noted:
        while progress.stage == stage.number:
            _run_epoch(trainer, stage, noted)
            signal = _end_epoch(trainer, stage, noted)
            if not signal:
                progress.epoch, progress.batch = progress.epoch + 1, 0
            through = progress.epoch == epochs
            if through:
                progress.stage, progress.epoch = stage.number + 1, 0
            [signal] = processes.agree(signal or noted.number)
            _save(trainer, None if through else stage)
            raise_if_stopped(signal)


def _run_epoch(trainer: Trainer, stage: Stage, noted: Noted) -> None:
    """The batches of an epoch that are not done."""
    recipe, progress, processes = trainer.recipe, trainer.progress, trainer.processes
    device = processes.fabric.device
    plans = epoch_plan(stage.source, recipe, stage.config, stage.number, progress.epoch, processes.size)
    stage.bar.set_description(f"stage {stage.number} epoch {progress.epoch + 1}/{stage.config.epochs}")
    stage.step.model.train()
    started, pairs = time.perf_counter(), 0
    shares = stage.source.share(plans[progress.batch :], processes.rank, processes.size)
    for batch in load_batches(stage.source, shares, stage.workers, device):
        at, number = progress.batch, progress.step
        observe = number % recipe.log_every == 0
        seen = stage.step(batch, progress.epoch * len(plans) + at, observe=observe)
        pairs += sum(len(captions) for captions in plans[at].captions)
        last = at + 1 == len(plans)
        overdue = time.monotonic() - trainer.last_saved > 60 * recipe.checkpoint_minutes
        due, signal = processes.agree(overdue, noted.number)
        keep = bool(last or due or signal)
        if observe or keep or device.type == "cpu":  # a GPU is asked only where its metrics are read
            where = f"step {number} (stage {stage.number}, epoch {progress.epoch + 1}, batch {at + 1})"
            check_finite(seen["loss"], trainer.model if keep else None, where)
        if observe:
            _log_step(trainer, stage, seen, pairs / (time.perf_counter() - started))
            started, pairs = time.perf_counter(), 0
        if recipe.histograms and number % recipe.histograms == 0 and trainer.log is not None:
            trainer.log.write_histograms(number, stage.step.optimizer.named())
        progress.step += 1
        progress.batch += 1
        stage.bar.update()
        trainer.tell("on_step", seen)
        if keep and not last:  # after the last batch comes validation, then the checkpoint
            _save(trainer, stage)
            raise_if_stopped(signal)


def _log_step(trainer: Trainer, stage: Stage, seen: dict[str, Tensor], rate: float) -> None:
    values = {name: float(value) for name, value in seen.items()}
    learning_rate = stage.step.optimizer.inner.param_groups[0]["lr"]
    speed = speed_and_memory(rate, trainer.processes.fabric.device)
    where = {"stage": stage.number, "epoch": trainer.progress.epoch + 1, "step": trainer.progress.step}
    trainer.write({"kind": "train", **where, **plain(values), "learning_rate": learning_rate, **speed})
    stage.bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)


def _end_epoch(trainer: Trainer, stage: Stage, noted: Noted) -> int:
    """Evaluate raw weights and their EMA on val and keep the best model so far in RUN/model, or the one there is now.

    Returns 0, or the number of a signal that came before it was through: then nothing is written.
    """
    if trainer.val is None:
        trainer.progress.best = trainer.processes.once(lambda: _keep_newest(trainer, stage))
        return 0
    signal, rows, trainer.progress.best = trainer.processes.once(lambda: _best_of(trainer, stage, noted))
    if not signal:
        trainer.tell("on_validation", rows)
    return signal


def _keep_newest(trainer: Trainer, stage: Stage) -> dict[str, Any]:
    """Keep the EMA of the weights, or the weights where there is none, in RUN/model; what they are."""
    progress, ema = trainer.progress, stage.step.ema
    weights = "raw" if ema is None else "ema"
    kept = {"stage": stage.number, "epoch": progress.epoch + 1, "step": progress.step, "weights": weights}
    _save_model(trainer, ema, kept)
    return kept


def _save_model(trainer: Trainer, ema: WeightEMA | None, row: dict[str, Any]) -> None:
    """Write RUN/model, with the weights that the row names."""
    with _weights_held(ema, row["weights"]):
        trainer.model.save_pretrained(trainer.run / "model", card=model_card(trainer.recipe, row))


def _best_of(trainer: Trainer, stage: Stage, noted: Noted) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    assert trainer.log is not None
    assert trainer.val is not None
    progress, ema, best = trainer.progress, stage.step.ema, trainer.progress.best
    stage.bar.set_postfix_str("validating")
    try:
        with noted.at_once():
            images, captions = stage.features.val_images, stage.features.val_captions
            autocast = trainer.processes.fabric.autocast
            seen = _validation_rows(trainer.model, trainer.val, images, ema, autocast, captions)
    except Interrupted as stop:
        return stop.number, [], best
    where = {"kind": "val", "stage": stage.number, "epoch": progress.epoch + 1, "step": progress.step}
    rows = [{**where, **row} for row in seen]
    for row in rows:
        trainer.log.write(row)
    newest = max(rows, key=lambda row: row["rsum"])
    if not best or newest["rsum"] > best["rsum"]:
        best = newest
        _save_model(trainer, ema, best)
    if trainer.show:
        stage.bar.write(f"stage {stage.number} epoch {progress.epoch + 1}: {_in_a_line(rows[-1], best['rsum'])}")
    stage.bar.set_postfix_str("")
    return 0, rows, best


def _validation_rows(
    model: DualEncoder,
    split: Split,
    features: np.ndarray | None,
    ema: WeightEMA | None,
    autocast: Callable[[], AbstractContextManager[object]],
    text_features: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Recall, mAP and ranks of raw weights and, if given, of their EMA, as metrics.jsonl has them.

    features, text_features: of the split's images and captions, if at hand. autocast: entered around the encoders.
    """
    rows = []
    for weights in ("raw", "ema") if ema is not None else ("raw",):
        with _weights_held(ema, weights), autocast():
            seen = embed_split(model, split, features=features, text_features=text_features)
        result = evaluate_retrieval(seen.images, seen.texts, seen.image_labels, seen.text_labels)
        rows.append({"weights": weights, **result.to_dict()})
    return rows


def _weights_held(ema: WeightEMA | None, weights: str) -> AbstractContextManager[None]:
    """A context in which the model holds its `raw` weights, or the `ema` of them."""
    return ema.applied() if ema is not None and weights == "ema" else nullcontext()


def _in_a_line(row: dict[str, Any], best: float) -> str:
    """A validation row and the best rsum so far as one line for the screen."""
    recall = f"R@1 {row['image_to_text']['R@1']:.1f} image to text, {row['text_to_image']['R@1']:.1f} text to image"
    return f"val {recall}, rsum {row['rsum']:.1f} (best {best:.1f})"


def _save(trainer: Trainer, stage: Stage | None) -> None:
    """Write a checkpoint; between two stages (None) only what the next one starts from."""
    tensors = {
        "model": trainer.model.state_dict(),
        "losses": trainer.losses.state_dict(),
        "random": trainer.processes.random_states(),
    }
    if stage is not None:
        tensors["optimizer"] = stage.step.optimizer.tensors()
        tensors["ema"] = stage.step.ema.averages if stage.step.ema is not None else {}
    checkpoint = Checkpoint(tensors, asdict(trainer.progress))
    path = trainer.processes.once(lambda: save_checkpoint(trainer.run / "checkpoints", checkpoint))
    trainer.last_saved = time.monotonic()
    trainer.tell("on_checkpoint", path)


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    trainer.model.load_state_dict(checkpoint.tensors["model"])
    trainer.losses.load_state_dict(checkpoint.tensors["losses"])
    trainer.progress = Progress(**checkpoint.state)
    trainer.processes.set_random_states(checkpoint.tensors["random"])
