"""crosspair inspect: a summary of a DATA, RUN, MODEL or GALLERY directory."""

import math
from argparse import Namespace
from pathlib import Path

from crosspair.data.dataset import inspect_data, open_data
from crosspair.data.sheet import write_sheet
from crosspair.encode.locate import library_of
from crosspair.encode.storage import WEIGHTS, model_checksum, read_model
from crosspair.errors import UserError
from crosspair.storage.directories import expect_kind
from crosspair.training.log import read_metrics
from crosspair.training.recipe_files import read_run_recipe
from crosspair.training.run import finished, source_name

VALIDATIONS_SHOWN = 12  # of a run, the last ones


def run(options: Namespace) -> None:
    """Print what a directory holds; with --sheet, write random images of DATA with their captions."""
    path: Path = options.path
    kind = expect_kind(path, "DATA", "RUN", "MODEL", "GALLERY")
    if kind == "DATA":
        print(inspect_data(path))
    elif options.sheet is not None:
        raise UserError(f"{path} is a {kind}; --sheet shows the pictures of a DATA directory")
    elif kind == "RUN":
        print(inspect_run(path))
    elif kind == "MODEL":
        print(inspect_model(path))
    else:
        from crosspair.gallery.describe import inspect_gallery

        print(inspect_gallery(path))
    if options.sheet is not None:
        write_sheet(open_data(path), options.sheet, options.seed)
        print(f"sheet: {options.sheet}")


def inspect_model(directory: Path) -> str:
    """A model's encoders, vocabulary, files and checksum, in a screenful. Raises UserError when it is damaged."""
    if library_of(directory) != "crosspair":
        return _inspect_pair(directory)
    saved = read_model(str(directory), weights=False)
    image, text, projection = saved.config.image, saved.config.text, saved.config.projection
    parameters = _count_weights(directory / WEIGHTS)
    return "\n".join(
        [
            f"MODEL {directory}: {projection.dim} dimensions"
            + (f", {parameters:,} weights" if parameters is not None else ", an export without PyTorch's weights"),
            f"image encoder {image.name}, pictures of {saved.image_input.height} x {saved.image_input.width} pixels",
            f"text encoder {text.name}, {len(saved.vocabulary):,} entries in its vocabulary",
            _describe_files(directory),
            f"checksum {model_checksum(directory)}",
        ]
    )


def _inspect_pair(directory: Path) -> str:
    """What is known of a ready-made pair of another library."""
    from crosspair.encode.model import DualEncoder

    model = DualEncoder.from_pretrained(directory, device="cpu")
    parameters = sum(value.numel() for value in model.parameters())
    dimensions, image_input, library = model.config.projection.dim, model.image_input, library_of(directory)
    tokens, longest = len(model.vocabulary), model.config.text.max_words
    return "\n".join(
        [
            f"MODEL {directory}: a ready-made pair of {library}, {dimensions} dimensions, {parameters:,} weights",
            f"image encoder: pictures of {image_input.height} x {image_input.width} pixels, as {library} cuts them",
            f"text encoder: {tokens:,} entries in its vocabulary, {longest:,} tokens at most",
            _describe_files(directory),
            f"checksum {model_checksum(directory)}",
        ]
    )


def _describe_files(directory: Path) -> str:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return "files: " + ", ".join(f"{path.name} {path.stat().st_size / 1e6:,.1f} MB" for path in files)


def _count_weights(path: Path) -> int | None:
    """The number of values in a safetensors file, by its header alone; None where there is no file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            shapes: list[list[int]] = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
            return sum(map(math.prod, shapes))
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't read the model's weights {path} ({error}); copy the model again") from error


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
    lines += [f"data {source_name(rows[0])}"] if rows else []
    if recipe.validation == "none":
        lines.append(f"trained on {', '.join(recipe.train_splits)}, not validated")
    if validations:
        best = max(validations, key=lambda row: row["rsum"])
        shown = [row for row in validations[-VALIDATIONS_SHOWN:] if row is not best]
        lines.append(f"{'val':<32}{'R@1 image to text':>18}{'R@1 text to image':>18}{'rsum':>8}")
        for row, mark in [*((row, "") for row in shown), (best, "best: ")]:
            name = f"{mark}stage {row['stage']} epoch {row['epoch']} {row['weights']}"
            recalls = f"{row['image_to_text']['R@1']:18.1f}{row['text_to_image']['R@1']:18.1f}"
            lines.append(f"{name:<32}{recalls}{row['rsum']:8.1f}")
    return "\n".join(lines)
