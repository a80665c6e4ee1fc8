"""Whole runs of `study.py`, and val rsum against minutes: the original's way of training and crosspair's."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from crosspair.data.dataset import Data, open_data
from crosspair.encode.backends import choose_backend
from crosspair.encode.features import image_features, kept_agreement
from crosspair.encode.split import embed_split
from crosspair.evaluation.metrics import evaluate_retrieval
from crosspair.storage.files import write_text
from crosspair.training.log import read_metrics
from crosspair.training.loop import train
from crosspair.training.recipe_files import load_recipe
from crosspair.training.run import finished
from trainers import trainer
from turns import Way, time_steps

# The original's way with the encoders of flickr8k-lite0: batches of 32 pairs, each with an image of its own that is
# decoded and encoded for it in float32, Adam at 2e-4, a frozen image encoder at first.
ORIGINAL = [
    *("--stage1.batch_size", "32", "--stage1.captions_per_image", "1", "--stage1.epoch_covers", "captions"),
    *("--stage1.learning_rate", "2e-4", "--stage1.schedule", "constant", "--stage1.warmup_steps", "0"),
    *("--ema.decay", "0", "--optimizer.grad_clip_norm", "null", "--hflip_sides", "true", "--device", "cpu"),
]
EPOCHS = 15  # at most, as published; over when rsum has not risen for PATIENCE validations
PATIENCE = 4
PER_EPOCH = 2  # validations
TIMED_STEPS, WARM_STEPS = 30, 6  # of each of the ways
# The original's steps in PyTorch as it is, and with what crosspair would make of them.
PLAIN, KEPT, IN_BF16 = "in float32", "in float32, memory kept", "in bf16, memory kept"
BEST = "flickr8k-best-small"


@dataclass
class Curve:
    """Minutes since the start, and rsum on val."""

    minutes: list[float]
    rsum: list[float]

    def reaches(self, rsum: float) -> float | None:
        """Minutes until a validation found at least so much."""
        return next((at for at, value in zip(self.minutes, self.rsum, strict=True) if value >= rsum), None)


@dataclass
class Steps:
    """Steps since the start, and rsum on val."""

    steps: list[int]
    rsum: list[float]

    def timed(self, seconds: float) -> Curve:
        """The curve of steps that take so long."""
        return Curve([step * seconds / 60 for step in self.steps], self.rsum)


def whole_run(
    data: Path, output: Path, name: str, overrides: list[str], seed: int, backend: str
) -> dict[int, dict[str, Any]]:
    """Train a recipe (the name up to a comma), or go on with it: the best row on val of each stage."""
    run = output / "runs" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not finished(run):
        settings = ["--seed", str(seed), "--feature_backend", backend, *overrides]
        recipe = load_recipe(name.split(",")[0], settings)
        train(recipe, open_data(data), run, resume=(run / "recipe.yaml").is_file())
    rows = [row for row in read_metrics(run) if row["kind"] == "val"]
    stages = {row["stage"] for row in rows}
    return {stage: max((row for row in rows if row["stage"] == stage), key=lambda row: row["rsum"]) for stage in stages}


def compare_curves(data: Path, output: Path, backend: str) -> str:
    """Measure both curves, draw them to OUTPUT/curves.png, and return what the comparison says.

    Our run begins with an empty cache of features: encoding counts.
    """
    folder = output / "curves"
    folder.mkdir(parents=True, exist_ok=True)
    times = _step_times(open_data(data), folder)
    original = _original(open_data(data), folder, backend).timed(times[PLAIN])
    ours = _ours(data, folder, backend)
    _draw({"the original's way (reckoned)": original, f"crosspair train {BEST}": ours}, output / "curves.png")
    final = max(original.rsum)
    before, after = original.reaches(final), ours.reaches(final)
    assert before is not None
    if after is None:
        return f"the original's way: rsum {final:.1f} after {before:.1f} minutes; {BEST}: {max(ours.rsum):.1f} at most"
    lines = [f"{BEST}: rsum {final:.1f} after {after:.1f} minutes, {max(ours.rsum):.1f} within {ours.minutes[-1]:.1f}"]
    for way, seconds in times.items():
        took = before * seconds / times[PLAIN]
        lines.append(f"the original's way, {way}: as much after {took:.1f} minutes, {took / after:.1f} times as long")
    return "\n".join(lines)


def _original(data: Data, folder: Path, backend: str) -> Steps:
    """The original's stage 1. Its steps are run on kept features, which changes them by rounding alone; their time is
    that of steps in which images are decoded and encoded."""
    path = folder / "original.json"
    if path.exists():
        return Steps(**json.loads(path.read_text(encoding="utf-8")))
    recipe = load_recipe("flickr8k-lite0", ORIGINAL)
    split, val_split = data.split("train"), data.split("val")
    model = trainer(recipe, split, 1).model
    chosen = choose_backend(model, backend, kept_agreement(model, val_split), precision=recipe.precision, tell=print)
    one = trainer(recipe, split, 1, features=image_features(model, split, chosen, hflip=True))
    val = image_features(one.model, val_split, chosen, hflip=False)
    curve = Steps([], [])
    for check in range(1, EPOCHS * PER_EPOCH + 1):
        while one.done < check * one.steps_per_epoch // PER_EPOCH:
            one.advance()
        with one.step.processes.fabric.autocast():
            seen = embed_split(one.model, val_split, features=val)
        result = evaluate_retrieval(seen.images, seen.texts, seen.image_labels, seen.text_labels).to_dict()
        curve.steps.append(one.done)
        curve.rsum.append(result["rsum"])
        print(f"the original's way: {curve.steps[-1]:6,} steps, rsum {curve.rsum[-1]:.1f}", flush=True)
        if len(curve.rsum) - 1 - curve.rsum.index(max(curve.rsum)) >= PATIENCE:
            break
    write_text(path, json.dumps(asdict(curve)))
    return curve


def _step_times(data: Data, folder: Path) -> dict[str, float]:
    """Seconds of a step of the original's way, 32 images decoded, encoded and matched with a caption each."""
    path = folder / "original-steps.json"
    if not path.exists():
        exact, fast = (
            load_recipe("flickr8k-lite0", [*ORIGINAL, "--precision", one]) for one in ("32-true", "bf16-mixed")
        )
        ways = {PLAIN: Way(exact, keeps_memory=False), KEPT: Way(exact), IN_BF16: Way(fast)}
        took = time_steps(ways, data.split("train"), 1, TIMED_STEPS, WARM_STEPS)
        write_text(path, json.dumps({way: each.median for way, each in took.items()}))
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    named = (f"{seconds:.2f} s {way}" for way, seconds in found.items())
    print(f"the original's way, a step of 32 pairs: {'; '.join(named)}")
    return found


def _ours(data: Path, folder: Path, backend: str) -> Curve:
    """A run of `crosspair train` from its start, with the time that its log gave to every validation."""
    path = folder / f"{BEST}.json"
    if not path.exists():
        run = folder / BEST
        for left in (run, folder / "cache"):  # of a run that was cut: its time would not count
            shutil.rmtree(left, ignore_errors=True)
        with patch.dict(os.environ, CROSSPAIR_CACHE=str(folder / "cache")):
            train(load_recipe(BEST, ["--feature_backend", backend]), open_data(data), run)
        write_text(path, json.dumps(asdict(logged_curve(run))))
    return Curve(**json.loads(path.read_text(encoding="utf-8")))


def logged_curve(run: Path) -> Curve:
    """The better of raw weights and their EMA at each validation of an uninterrupted run, from its TensorBoard log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    start = events.FirstEventTimestamp()
    found: dict[int, tuple[float, float]] = {}
    for tag in events.Tags()["scalars"]:
        if tag in {"val/raw/rsum", "val/ema/rsum"}:
            for event in events.Scalars(tag):
                best = max(event.value, found.get(event.step, (0.0, 0.0))[1])
                found[event.step] = ((event.wall_time - start) / 60, best)
    return Curve([found[step][0] for step in sorted(found)], [found[step][1] for step in sorted(found)])


def _draw(curves: dict[str, Curve], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, curve), style in zip(curves.items(), ("o--", "s-"), strict=True):
        axes.plot(curve.minutes, curve.rsum, style, markersize=4, label=name)
    axes.axhline(max(next(iter(curves.values())).rsum), color="0.6", linewidth=0.8)
    axes.set(xscale="log", xlabel="minutes of training, encoding included", ylabel="rsum on Flickr8k val")
    axes.set_xticks(ticks := [2, 5, 10, 20, 50, 100, 200], [str(tick) for tick in ticks])
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
