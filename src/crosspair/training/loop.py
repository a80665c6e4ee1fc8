"""The training loop: stages, epochs, steps; validation, checkpoints and the best model on the way.

train(load_recipe("flickr8k-lite0"), open_data(Path("DATA")), Path("RUN"))
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crosspair.data.batching import BatchPlan, BatchSource, load_batches
from crosspair.data.streams.stream import StreamSplit
from crosspair.encode.model import create_model
from crosspair.progress import progress_bar
from crosspair.storage.files import refuse_occupied, remove_leftovers, write_text
from crosspair.training.adapters import add_recipe_adapters
from crosspair.training.batches import batch_source, epoch_plan, share
from crosspair.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from crosspair.training.distributed import Processes, counted_processes, launch
from crosspair.training.ema import WeightEMA
from crosspair.training.finite import check_finite
from crosspair.training.interruption import Interrupted, Noted, raise_if_stopped, signals_noted
from crosspair.training.layers import freeze_for_stage
from crosspair.training.log import RunLog, check_tensorboard, plain, quiet_libraries, speed_and_memory
from crosspair.training.losses import MatchingLosses
from crosspair.training.machine import keep_memory, settled
from crosspair.training.optimizer import ScheduledAdam
from crosspair.training.recipe import Recipe, StageConfig
from crosspair.training.recipe_files import save_recipe
from crosspair.training.run import check_same_run, describe_source, model_card
from crosspair.training.stage_features import StageFeatures, stage_features
from crosspair.training.step import TrainingStep
from crosspair.training.synchronised import synchronise_batch_norm
from crosspair.training.validation import in_a_line, validation_rows, weights_held

if TYPE_CHECKING:
    from crosspair.data.dataset import Data, Split
    from crosspair.data.streams.stream import StreamData


def train(
    recipe: Recipe, data: "Data | StreamData", run: Path, *, resume: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Run all stages of a recipe and return the row of the best model on val, which is then in RUN/model.

    resume: go on from RUN's newest whole checkpoint (or start, if there is none yet).
    Raises UserError for what the user can mend, Interrupted on SIGINT and SIGTERM.
    """
    for split in ("train", "val"):
        data.split(split)
    check_tensorboard(recipe.tensorboard)
    recipe = settled(counted_processes(recipe))
    with quiet_libraries():
        processes = launch(recipe)
        if processes.fabric.device.type == "cpu":
            keep_memory()
        processes.once(lambda: _check_directory(recipe, data, run, resume))
        checkpoint = load_checkpoint(run / "checkpoints") if resume else None
        training = _Training(recipe, data, run, progress, processes, with_weights=checkpoint is None)
        # Only now is it known that the run can start: a failed start leaves nothing behind.
        processes.once(lambda: write_text(run / "recipe.yaml", save_recipe(recipe)))
        best = training.execute(checkpoint)
        processes.leave()
        return best


def _check_directory(recipe: Recipe, data: "Data | StreamData", run: Path, resume: bool) -> None:
    if resume:
        check_same_run(recipe, data, run)
        remove_leftovers(run)
        remove_leftovers(run / "checkpoints")
    else:
        for path in run.glob(".recipe.yaml.*"):  # all that a start leaves when it is killed before it knows that it can
            path.unlink()
        refuse_occupied(run, "a training run")


class _Training:
    """A run in progress: the model, what it is trained with, and the position in stage, epoch and batch."""

    def __init__(
        self,
        recipe: Recipe,
        data: "Data | StreamData",
        run: Path,
        progress: bool,
        processes: Processes,
        with_weights: bool,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.progress = progress
        self.processes = processes
        self.source = describe_source(data)
        self.train_split: Split | StreamSplit = data.split("train")
        self.val_split: Split = data.split("val")
        for number, stage in recipe.stages:
            processes.check_batch(min(stage.batch_size, len(self.train_split)), f"stage{number}")
        torch.manual_seed(recipe.seed)
        self.fabric = processes.fabric
        captions: Iterable[str] = (caption for row in self.train_split.captions for caption in row)
        if isinstance(self.train_split, StreamSplit):
            captions = self.train_split.word_counts
        # A checkpoint brings the image encoder's weights, wherever they came from at the start.
        image = recipe.model.image if with_weights else replace(recipe.model.image, weights="none")
        self.model = create_model(replace(recipe.model, image=image), captions).to(self.fabric.device)
        self.model.config = recipe.model
        add_recipe_adapters(self.model, recipe.lora)
        self.num_classes = len(np.unique(self.train_split.labels))
        projection = recipe.model.projection
        losses = MatchingLosses(recipe.loss, self.num_classes, projection.dim, projection.heads)
        self.losses = losses.to(self.fabric.device)
        if recipe.precision == "64-true":
            self.model.double()
            self.losses.double()
        if recipe.sync_batch_norm and processes.size > 1:
            synchronise_batch_norm(self.model)
        self.model.use_channels_last(recipe.channels_last)
        if recipe.compile:
            self.model.image_encoder.compile()  # in place: names in checkpoints stay
        processes.seed(recipe.seed)
        self.log: RunLog | None = None  # only the first process writes
        self.step = 0  # of all stages together
        self.best: dict[str, Any] = {}
        self.position = (0, 0, 0)  # index of the stage, epoch, batch: where training goes on
        self.last_saved = time.monotonic()
        self.bar = progress_bar(disable=True)

    def execute(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        if checkpoint is not None:
            self._restore(checkpoint)
        first = self.position[0]
        self.processes.once(self._open_log)
        with self.log or nullcontext():
            if self.step == 0:
                self._write({"kind": "start", "step": 0, **self.source})
            for index, (number, stage) in enumerate(self.recipe.stages):
                if index >= first:
                    self._stage(index, number, stage, checkpoint if index == first else None)
            self._write({"kind": "end", "step": self.step, **{key: self.best[key] for key in ("rsum", "weights")}})
        return self.best

    def _open_log(self) -> None:
        validated = self.position[2] == 0
        self.log = RunLog(self.run, self.step, validated=validated, tensorboard=self.recipe.tensorboard)

    def _write(self, row: dict[str, Any]) -> None:
        self.processes.once(lambda: self.log.write(row) if self.log is not None else None)

    def _stage(self, index: int, number: int, stage: StageConfig, checkpoint: Checkpoint | None) -> None:
        """Train one stage; with a checkpoint, from where it was left."""
        freeze_for_stage(self.model, stage)
        # Anew for each stage, as other weights train. The losses are computed outside, in the weights' own precision.
        self.wrapped = self.fabric.setup_module(self.model)
        self.features = self._features(stage)
        images, captions = self.features.train_images, self.features.train_captions
        source = batch_source(self.train_split, self.model, self.recipe, stage, images, self.progress, captions)
        batches = len(self._plan(source, stage, number, 0))
        training = self._training_step(stage, batches * stage.epochs)
        if checkpoint is not None:
            _restore_stage(training, checkpoint)
        epoch, batch = self.position[1:] if checkpoint is not None else (0, 0)
        self.bar = progress_bar(
            total=batches * stage.epochs,
            initial=epoch * batches + batch,
            unit="step",
            disable=not (self.progress and self.processes.first),
        )
        with self.bar, signals_noted() as noted:
            while epoch < stage.epochs:
                self._epoch(training, source, stage, (index, number, epoch, batch), noted)
                epoch, batch = epoch + 1, 0
                signal = self._validate(training, number, epoch, noted)
                last = epoch == stage.epochs and not signal
                if not signal:
                    self.position = (index + 1, 0, 0) if last else (index, epoch, 0)
                [signal] = self.processes.agree(signal or noted.number)
                self._save(None if last else training)
                raise_if_stopped(signal)

    def _epoch(
        self,
        training: TrainingStep,
        source: BatchSource,
        stage: StageConfig,
        at: tuple[int, int, int, int],
        noted: Noted,
    ) -> None:
        index, number, epoch, first = at
        plans = self._plan(source, stage, number, epoch)
        self.bar.set_description(f"stage {number} epoch {epoch + 1}/{stage.epochs}")
        self.wrapped.train()
        started, pairs = time.perf_counter(), 0
        shares = share(plans[first:], self.processes.rank, self.processes.size)
        loaded = load_batches(source, shares, self._workers(), self.fabric.device)
        for batch_index, batch in enumerate(loaded, start=first):
            observe = self.step % self.recipe.log_every == 0
            seen = training(batch, epoch * len(plans) + batch_index, observe=observe)
            pairs += sum(len(captions) for captions in plans[batch_index].captions)
            last = batch_index + 1 == len(plans)
            overdue = time.monotonic() - self.last_saved > 60 * self.recipe.checkpoint_minutes
            due, signal = self.processes.agree(overdue, noted.number)
            keep = bool(last or due or signal)
            if observe or keep or self.fabric.device.type == "cpu":  # a GPU is asked only where its metrics are read
                where = f"step {self.step} (stage {number}, epoch {epoch + 1}, batch {batch_index + 1})"
                check_finite(seen["loss"], self.model if keep else None, where)
            if observe:
                rate = pairs / (time.perf_counter() - started)
                self._log_step(training, seen, number, epoch, rate)
                started, pairs = time.perf_counter(), 0
            self.step += 1
            self.bar.update()
            self.position = (index, epoch, batch_index + 1)
            if keep and not last:  # after the last batch comes validation, then the checkpoint
                self._save(training)
                raise_if_stopped(signal)

    def _validate(self, training: TrainingStep, number: int, epoch: int, noted: Noted) -> int:
        """Evaluate raw and averaged weights on val; keep the best model so far in RUN/model.

        Returns 0, or the number of a signal that came before it was through: then nothing is written.
        """
        signal, self.best = self.processes.once(lambda: self._best_of(training, number, epoch, noted))
        return signal

    def _best_of(self, training: TrainingStep, number: int, epoch: int, noted: Noted) -> tuple[int, dict[str, Any]]:
        assert self.log is not None
        self.bar.set_postfix_str("validating")
        ema, best = training.ema, self.best
        try:
            with noted.at_once():
                images, captions = self.features.val_images, self.features.val_captions
                autocast = self.fabric.autocast
                seen = validation_rows(self.model, self.val_split, images, ema, autocast, captions)
        except Interrupted as stop:
            return stop.number, best
        rows = [{"kind": "val", "stage": number, "epoch": epoch, "step": self.step, **row} for row in seen]
        for row in rows:
            self.log.write(row)
        newest = max(rows, key=lambda row: row["rsum"])
        if not best or newest["rsum"] > best["rsum"]:
            best = newest
            with weights_held(ema, best["weights"]):
                self.model.save_pretrained(self.run / "model", card=model_card(self.recipe, best))
        self.bar.write(f"stage {number} epoch {epoch}: {in_a_line(rows[-1], best['rsum'])}")
        self.bar.set_postfix_str("")
        return 0, best

    def _features(self, stage: StageConfig) -> StageFeatures:
        return stage_features(
            self.model,
            self.recipe,
            stage,
            self.train_split,
            self.val_split,
            autocast=self.fabric.autocast,
            tell=print if self.progress and self.processes.first else lambda line: None,
            progress=self.progress,
        )

    def _plan(self, source: BatchSource, stage: StageConfig, number: int, epoch: int) -> Sequence[BatchPlan]:
        return epoch_plan(source, self.recipe, stage, number, epoch, self.processes.size)

    def _training_step(self, stage: StageConfig, steps: int) -> TrainingStep:
        recipe = self.recipe
        ema = None
        if recipe.ema.decay > 0:
            leave_out = ("text_encoder.",) if recipe.ema.parts == "image" else ()
            ema = WeightEMA(self.model, recipe.ema.decay, leave_out)
        optimizer = ScheduledAdam(self.model, self.losses, recipe.optimizer, stage, steps)
        before, clip = recipe.ema.before_update, recipe.optimizer.grad_clip_norm
        settings = (before, clip, stage.mini_batch_size)
        return TrainingStep(self.processes, self.wrapped, self.losses, optimizer, ema, *settings)

    def _workers(self) -> int:
        if self.recipe.workers >= 0:
            return self.recipe.workers
        return 0 if self.fabric.device.type == "cpu" else max(1, (os.cpu_count() or 1) // self.recipe.devices)

    def _log_step(self, training: TrainingStep, seen: dict[str, Tensor], number: int, epoch: int, rate: float) -> None:
        values = {name: float(value) for name, value in seen.items()}
        learning_rate = training.optimizer.adam.param_groups[0]["lr"]
        speed = speed_and_memory(rate, self.fabric.device)
        where = {"stage": number, "epoch": epoch + 1, "step": self.step}
        row = {"kind": "train", **where, **plain(values), "learning_rate": learning_rate, **speed}
        self._write(row)
        self.bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)

    def _save(self, training: TrainingStep | None) -> None:
        """Write a checkpoint; between two stages (no training step) only what the next one starts from."""
        tensors = {
            "model": self.model.state_dict(),
            "losses": self.losses.state_dict(),
            "random": self.processes.random_states(),
        }
        if training is not None:
            tensors["optimizer"] = training.optimizer.tensors()
            tensors["ema"] = training.ema.shadows if training.ema is not None else {}
        state = {"step": self.step, "position": list(self.position), "best": self.best}
        self.processes.once(lambda: save_checkpoint(self.run / "checkpoints", Checkpoint(tensors, state)))
        self.last_saved = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.tensors["model"])
        self.losses.load_state_dict(checkpoint.tensors["losses"])
        self.step = checkpoint.state["step"]
        self.position = tuple(checkpoint.state["position"])
        self.best = checkpoint.state["best"]
        self.processes.set_random_states(checkpoint.tensors["random"])


def _restore_stage(training: TrainingStep, checkpoint: Checkpoint) -> None:
    if "optimizer" in checkpoint.tensors:
        training.optimizer.load(checkpoint.tensors["optimizer"])
        if training.ema is not None:
            training.ema.load(checkpoint.tensors["ema"])
