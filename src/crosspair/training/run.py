"""The directory of a run: its data, whether it is finished or can be resumed, and its model's card."""

import logging
from pathlib import Path
from typing import Any

from crosspair.data.splits import RunSplits
from crosspair.errors import UserError
from crosspair.storage.directories import FILES, kind_of
from crosspair.training.log import read_metrics
from crosspair.training.plugins import check_plugins
from crosspair.training.recipe import Recipe
from crosspair.training.recipe_files import differences, load_recipe, read_run_recipe

logger = logging.getLogger(__name__)


def finished(run: Path) -> bool:
    """Whether a run has gone through all its stages."""
    return any(row["kind"] == "end" for row in read_metrics(run)[-1:])


def model_directory(name: str) -> str:
    """The model of a finished RUN, or the directory or hub name of a model as it is.

    Raises UserError when the run is half-trained, and for a directory of another kind.
    """
    run = Path(name)
    kind = kind_of(run)
    if kind in ("DATA", "GALLERY"):
        raise UserError(f"{name} is a {kind}; expected a RUN or a MODEL")
    if kind != "RUN":
        return name
    if finished(run):
        return str(run / "model")
    rows = [row for row in read_metrics(run) if row["kind"] == "val"]
    reached = f"stage {rows[-1]['stage']}, epoch {rows[-1]['epoch']}" if rows else "before its first epoch's end"
    best = f", or name {run / 'model'} for the best so far" if rows else ""
    raise UserError(f"{run} is half-trained ({reached}); finish it with crosspair train ... --resume{best}")


def data_directory(run: Path) -> Path:
    """The DATA directory that a RUN was validated on, or trained on where nothing was validated.

    Raises UserError where there is no run, or one whose data were no DATA directory.
    """
    rows = read_metrics(run)
    if not rows:
        raise UserError(f"{run} is no RUN and no stored result; expected one of both, or --data DATA to evaluate it on")
    if rows[0].get("data") is None:
        raise UserError(f"{run} was trained on {source_name(rows[0])}, no DATA directory; name one with --data DATA")
    return Path(rows[0]["data"])


def warn_of_training_split(name: str, data: Path, split: str) -> None:
    """Say so where a RUN was trained on a split of DATA, other than train, that it is to be measured on."""
    if kind_of(Path(name)) != "RUN" or split == "train" or split not in read_run_recipe(Path(name)).train_splits:
        return
    if read_metrics(Path(name))[0].get("data") == str(data.resolve()):
        logger.warning("%s was trained on %s too; what is measured on it says nothing of new pictures", name, split)


def describe_source(splits: RunSplits) -> dict[str, Any]:
    """A run's data, as the first row of metrics.jsonl keeps it; "data" is what `data_directory` gives."""
    train, val = splits.train, splits.val
    directory = train.directory if val is None else val.directory
    checksums = {"train": train.checksum} | ({} if val is None else {"val": val.checksum})
    return {"data": None if directory is None else str(directory), "checksums": checksums, **train.describe()}


def check_same_run(recipe: Recipe, splits: RunSplits, run: Path) -> None:
    """Resuming under another recipe or on other data would give a run that nothing describes."""
    path = run / FILES["RUN"]
    if kind_of(run) != "RUN":
        raise UserError(f"{run} holds no training run to resume; expected its recipe.yaml, start without --resume")
    check_plugins(run)
    others = differences(load_recipe(str(path)), recipe)  # a field that is newer than the run has its default in both
    if others:
        raise UserError(
            f"{path} differs from the recipe given in {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}; "
            "resume with the same recipe and overrides, or start another run"
        )
    rows, source = read_metrics(run), describe_source(splits)
    if rows and rows[0]["checksums"] != source["checksums"]:
        found, before = source_name(source), source_name(rows[0])
        advice = f"--data {before}" if before != rows[0].get("dataset") else f"the {before} that it started with"
        raise UserError(f"{run} was trained on other data than {found}; resume with {advice}")
    if finished(run):
        raise UserError(f"{run} is finished already; start another run with another --output")


def source_name(source: dict[str, Any]) -> str:
    """The name of a run's data for users: its stream, its dataset or its DATA directory."""
    return str(source.get("stream") or source.get("dataset") or source.get("data"))


RESPONSIBLE_USE = """\
## Responsible use

- A score ranks pictures and sentences; it identifies nobody, and a first hit is shown also when nothing fits.
- Not for finding or profiling people without their consent, nor for decisions about them.
- Data and pretrained weights have licences and biases of their own: see docs/responsible-use.md of crosspair.
"""


def model_card(recipe: Recipe, row: dict[str, Any]) -> str:
    """Markdown for the hub: the recipe, what it started from, its best validation if any, and what it is not for."""

    def line(direction: str) -> str:
        scores = row[direction.replace(" ", "_")]
        values = " | ".join(f"{scores[name]:.1f}" for name in ("R@1", "R@5", "R@10", "mAP"))
        return f"| {direction} | {values} |\n"

    image, text = recipe.model.image, recipe.model.text
    chosen = f"stage {row['stage']}, epoch {row['epoch']}, {row['weights']} weights"
    results = (
        f"Best on val: {chosen}; protocol plain,\n"
        "that is among all pictures and texts of the split.\n\n"
        "| | R@1 | R@5 | R@10 | mAP |\n|---|---|---|---|---|\n" + line("image to text") + line("text to image")
        if "rsum" in row
        else f"Trained on {', '.join(recipe.train_splits)} and not validated: {chosen}.\n"
    )
    started = "from scratch" if text.name == "bilstm" else f"weights {text.weights}"
    return (
        "---\nlibrary_name: crosspair\ntags: [image-text-matching]\n---\n\n"
        f"# Image-text matcher, recipe {recipe.name}\n\n"
        f"Image encoder {image.name} (weights {image.weights}), text encoder {text.name} ({started}).\n"
        f"{results}\n"
        'Use: `crosspair.DualEncoder.from_pretrained("...").encode_text(["a dog runs"])`\n\n' + RESPONSIBLE_USE
    )
