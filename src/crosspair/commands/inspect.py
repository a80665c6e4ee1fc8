"""crosspair inspect: what is in a DATA, RUN or GALLERY directory, in a screenful."""

from argparse import Namespace
from pathlib import Path

from crosspair.data.dataset import inspect_data, open_data
from crosspair.data.sheet import write_sheet
from crosspair.errors import UserError
from crosspair.gallery.layout import MANIFEST, current_file, is_unfinished
from crosspair.training.log import read_metrics
from crosspair.training.recipe_files import read_run_recipe
from crosspair.training.run import finished

VALIDATIONS_SHOWN = 12  # of a run, the last ones


def run(options: Namespace) -> None:
    """Print what a directory holds; with --sheet, write random pictures of DATA with their captions."""
    path: Path = options.path
    is_gallery = current_file(path, MANIFEST).is_file() or is_unfinished(path)
    is_run = (path / "recipe.yaml").is_file()
    if options.sheet is not None and (is_gallery or is_run):
        raise UserError(
            f"{path} is a {'gallery' if is_gallery else 'run'}; --sheet shows the pictures of a DATA directory"
        )
    if is_gallery:
        from crosspair.gallery.describe import inspect_gallery

        print(inspect_gallery(path))
    elif is_run:
        print(inspect_run(path))
    else:
        print(inspect_data(path))
        if options.sheet is not None:
            write_sheet(open_data(path), options.sheet, options.seed)
            print(f"sheet: {options.sheet}")


def inspect_run(run: Path) -> str:
    """A run's recipe, data and last validations, in a screenful."""
    recipe = read_run_recipe(run)
    rows = read_metrics(run)
    validations = [row for row in rows if row["kind"] == "val"]
    losses = ", ".join(f"{name} x {weight:g}" for name, weight in recipe.loss_weights.items())
    lines = [
        f"RUN {run}: {'finished' if finished(run) else 'not finished'}, {rows[-1]['step'] if rows else 0:,} steps",
        f"recipe {recipe.name}: {recipe.summary}",
        f"image encoder {recipe.model.image.name}, losses {losses}",
    ]
    if recipe.plugins:
        lines.append(f"plugins {', '.join(plugin['name'] for plugin in recipe.plugins)}")
    lines += [f"data {rows[0]['data']}"] if rows else []
    if validations:
        best = max(validations, key=lambda row: row["rsum"])
        shown = [row for row in validations[-VALIDATIONS_SHOWN:] if row is not best]
        lines.append(f"{'val':<32}{'R@1 image to text':>18}{'R@1 text to image':>18}{'rsum':>8}")
        for row, mark in [*((row, "") for row in shown), (best, "best: ")]:
            name = f"{mark}stage {row['stage']} epoch {row['epoch']} {row['weights']}"
            recalls = f"{row['image_to_text']['R@1']:18.1f}{row['text_to_image']['R@1']:18.1f}"
            lines.append(f"{name:<32}{recalls}{row['rsum']:8.1f}")
    return "\n".join(lines)
