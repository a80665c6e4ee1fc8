"""crosspair train: train by a recipe on a DATA directory or a stream; leaves a RUN with its model and report."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.devices import find_device
from crosspair.errors import UserError
from crosspair.storage.directories import kind_of
from crosspair.training.plugins import check_plugins
from crosspair.training.recipe_files import load_recipe
from crosspair.training.recipe_help import field_help

if TYPE_CHECKING:
    from crosspair.data.splits import TrainingData
    from crosspair.training.recipe import Recipe


def run(options: Namespace) -> int:
    """Train, write the report and print the best validation; or list the recipe's fields."""
    if options.fields:
        print(field_help())
        return 0
    missing = [name for name in ("recipe", "data", "output") if getattr(options, name) is None]
    if missing:
        raise UserError(f"missing {' and '.join(missing)}; expected crosspair train RECIPE --data DATA --output RUN")
    if options.resume:
        check_plugins(options.output)  # says which of them are missing, where the recipe's names alone would not
    recipe = load_recipe(options.recipe, options.overrides)
    find_device(recipe.device)
    return _train(recipe, options.data, options.val, options.output, resume=options.resume)


def _train(recipe: "Recipe", source: str, val: Path | None, run: Path, *, resume: bool) -> int:
    """Train a recipe; the exit code. Of several processes the first one speaks for all."""
    from crosspair.training.distributed import is_first_process
    from crosspair.training.interruption import Interrupted
    from crosspair.training.loop import train

    try:
        data = _open(source, val, recipe)
        best = train(recipe, data, run, resume=resume).best
    except Interrupted as stop:
        if is_first_process():
            print(f"crosspair: {stop}; the same command with --resume goes on from here", file=sys.stderr)
        return 128 + stop.number
    except UserError:
        if is_first_process():
            raise
        return 2
    if not is_first_process():
        return 0
    where = f"stage {best['stage']}, epoch {best['epoch']}, {best['weights']} weights"
    if recipe.validation == "none":
        print(f"trained on {', '.join(recipe.train_splits)}, not validated ({where})\nmodel: {run / 'model'}")
        return 0
    from crosspair.commands.report import report_run

    report_run(run, data.split("val").directory, "val", run / "report.html", device=recipe.device)
    print(f"best on val: rsum {best['rsum']:.1f} ({where})")
    print(f"model: {run / 'model'}\nreport: {run / 'report.html'}")
    return 0


def _open(source: str, val: Path | None, recipe: "Recipe") -> "TrainingData":
    """A DATA directory, or a stream, which takes its split val, if it is to be validated, from the DATA `val`."""
    from crosspair.data.dataset import open_data

    prepared, validated = kind_of(source) == "DATA", recipe.validation != "none"
    stream = not prepared and any(sign in source for sign in ("://", "{", ".tar"))
    if val is None and (validated or not stream):
        if stream:
            raise UserError(f"{source} is a stream; name a DATA directory whose split val to use with --val")
        return open_data(source)
    if prepared:
        raise UserError(f"--val goes with a stream, and {source} is a DATA directory; leave --val out")
    if val is not None and not validated:
        raise UserError("--val names the data to validate on, and validation is none; leave one of them out")
    from crosspair.data.splits import GivenData
    from crosspair.data.streams.stream import open_stream

    held_out = {} if val is None else {"val": open_data(val).split("val")}  # before the stream is read
    return GivenData({"train": open_stream(source, on_error=recipe.stream.on_error), **held_out})
