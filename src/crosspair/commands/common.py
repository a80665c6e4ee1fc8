"""What the commands do: they join data, training and evaluation, and return what is to be printed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.errors import UserError
from crosspair.storage.files import refuse_occupied

VALIDATIONS_SHOWN = 12  # of a run, the last ones

if TYPE_CHECKING:
    from crosspair.data.dataset import Data
    from crosspair.data.streams.stream import StreamData
    from crosspair.evaluation.protocols import Evaluation
    from crosspair.models.dual_encoder import DualEncoder
    from crosspair.training.recipe import Recipe


def train_command(
    recipe_name: str, overrides: list[str], source: str, val: Path | None, run: Path, resume: bool
) -> int:
    """Train a recipe; returns the exit code. Of several processes the first one speaks for all.

    source: a DATA directory, or a stream, which takes its split val from the DATA directory `val`.
    """
    from crosspair.training.recipe_files import load_recipe

    recipe = load_recipe(recipe_name, overrides)
    from crosspair.training.distributed import is_first_process
    from crosspair.training.interruption import Interrupted
    from crosspair.training.loop import train

    try:
        data = _training_data(source, val, recipe)
        best = train(recipe, data, run, resume=resume)
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
    report_command(run, data.path, "val", None)
    where = f"stage {best['stage']}, epoch {best['epoch']}, {best['weights']} weights"
    print(f"best on val: rsum {best['rsum']:.1f} ({where})")
    print(f"model: {run / 'model'}\nreport: {run / 'report.html'}")
    return 0


def _training_data(source: str, val: Path | None, recipe: "Recipe") -> "Data | StreamData":
    from crosspair.data.dataset import open_data
    from crosspair.data.layout import MANIFEST

    prepared = (Path(source) / MANIFEST).is_file()
    if val is None:
        if not prepared and any(sign in source for sign in ("://", "{", ".tar")):
            raise UserError(f"{source} is a stream; name a DATA directory whose split val to use with --val")
        return open_data(source)
    if prepared:
        raise UserError(f"--val goes with a stream, and {source} is a DATA directory; leave --val out")
    from crosspair.data.streams.stream import StreamData, open_stream

    held_out = open_data(val)
    held_out.split("val")  # before the stream is read
    return StreamData(source, open_stream(source, on_error=recipe.stream.on_error), held_out)


def report_command(run: Path, data: Path | None, split_name: str, output: Path | None) -> str:
    """Write a run's report; a line that says where."""
    from crosspair.data.dataset import open_data
    from crosspair.models.dual_encoder import DualEncoder
    from crosspair.training.log import read_metrics
    from crosspair.training.run import model_directory

    directory = model_directory(str(run))
    history = read_metrics(run)
    if not history:
        raise UserError(
            f"{run} has no metrics.jsonl; expected a training run as `crosspair train --output RUN` writes it"
        )
    opened = open_data(data or Path(history[0]["data"]))
    opened.split(split_name)  # before the model is loaded
    path = output or run / "report.html"
    write_run_report(path, run, DualEncoder.from_pretrained(directory), opened, split_name)
    return f"report: {path}"


def write_run_report(path: Path, run: Path, model: "DualEncoder", data: "Data", split_name: str) -> "Evaluation":
    """Evaluate `model` on a split by the protocol of its data, write the report of its run; the evaluation."""
    from crosspair.commands.evaluate import embed
    from crosspair.evaluation.protocols import choose_protocol, evaluate_protocol
    from crosspair.report.page import write_report
    from crosspair.training.log import read_metrics
    from crosspair.training.recipe_files import load_recipe

    recipe = load_recipe(str(run / "recipe.yaml"))
    split = data.split(split_name)
    protocol = choose_protocol(str(data.manifest.source.get("format", "")), split_name, len(split))
    embeddings = embed(model, split)
    evaluation = evaluate_protocol(protocol, embeddings)
    facts = {
        "Recipe": f"{recipe.name}: {recipe.summary}",
        "Split": f"{split_name}, {len(embeddings.images):,} pictures with {len(embeddings.texts):,} captions",
        "Image encoder": recipe.model.image.name,
        "Losses": ", ".join(f"{name} {weight:g}" for name, weight in recipe.loss.weights.items()),
    }
    write_report(
        path,
        title=f"{recipe.name} on {split_name}",
        facts=facts,
        embeddings=embeddings,
        evaluation=evaluation,
        captions=[caption for of_image in split.captions for caption in of_image],
        thumbnail=split.image,
        history=read_metrics(run),
    )
    return evaluation


def import_command(checkpoint: Path, word_counts: Path, output: Path) -> str:
    """Turn the original's checkpoint into a model's directory; lines that say what it is and where."""
    from crosspair.original.import_checkpoint import import_checkpoint

    refuse_occupied(output, "the model")
    model = import_checkpoint(checkpoint, word_counts)
    model.save_pretrained(output)
    config = model.config
    words = len(model.vocabulary) - 2  # padding and the unknown word have numbers too
    return (
        f"{config.image.name}, BiLSTM of {config.text.hidden_dim} units a direction, {words:,} "
        f"words, {config.projection.dim} dimensions\nmodel: {output}"
    )


def verify_command() -> tuple[str, bool]:
    """Run the fidelity checks; their table, and whether all passed."""
    from crosspair.original.verify.run import verify

    report = verify(progress=True)
    return report.to_table(), report.passed


def serve_command(gallery: Path, host: str, port: int, token: str | None) -> None:
    """Serve a gallery until a signal comes."""
    try:
        from crosspair.serve.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs the package {error.name}; run: pip install 'crosspair[search]'") from error
    serve(gallery, host, port, token)


def inspect_command(path: Path, sheet: Path | None = None, seed: int = 0) -> str:
    """What is in a DATA, RUN or GALLERY directory; for DATA random pictures with captions in the file `sheet`."""
    from crosspair.data.dataset import inspect_data, open_data

    if _is_gallery(path):
        if sheet is not None:
            raise UserError(f"{path} is a gallery; --sheet shows the pictures of a DATA directory")
        from crosspair.gallery.describe import inspect_gallery

        return inspect_gallery(path)
    if (path / "recipe.yaml").is_file():
        if sheet is not None:
            raise UserError(f"{path} is a run; --sheet shows the pictures of a DATA directory")
        return _inspect_run(path)
    text = inspect_data(path)
    if sheet is None:
        return text
    from crosspair.data.sheet import write_sheet

    write_sheet(open_data(path), sheet, seed)
    return f"{text}\nsheet: {sheet}"


def _is_gallery(path: Path) -> bool:
    from crosspair.gallery.layout import MANIFEST, current_file, is_unfinished

    return current_file(path, MANIFEST).is_file() or is_unfinished(path)


def _inspect_run(run: Path) -> str:
    from crosspair.training.log import read_metrics
    from crosspair.training.recipe_files import load_recipe
    from crosspair.training.run import finished

    recipe = load_recipe(str(run / "recipe.yaml"))
    rows = read_metrics(run)
    validations = [row for row in rows if row["kind"] == "val"]
    lines = [
        f"RUN {run}: {'finished' if finished(run) else 'not finished'}, {rows[-1]['step'] if rows else 0:,} steps",
        f"recipe {recipe.name}: {recipe.summary}",
        f"image encoder {recipe.model.image.name}, losses CMPM x {recipe.loss.cmpm:g} and CMPC x {recipe.loss.cmpc:g}",
    ]
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


def index_command(model: str, source: Path, output: Path, **options: Any) -> str:
    """Make or renew a gallery, with the options of `index_images`; the lines that say what it holds now."""
    from crosspair.gallery.describe import describe_summary
    from crosspair.gallery.indexing import index_images
    from crosspair.training.run import model_directory

    summary = index_images(
        model_directory(model),
        source,
        output,
        tell=lambda line: print(line, file=sys.stderr),
        **options,
    )
    return describe_summary(summary)


def search_command(gallery_path: Path, query: str, top: int, *, as_json: bool) -> str:
    """The pictures of a gallery nearest to a sentence or a picture, as a table or as JSON."""
    from crosspair.gallery.describe import found_json, found_table
    from crosspair.gallery.gallery import Gallery
    from crosspair.gallery.query import encode_query

    if top < 1:
        raise UserError(f"found --top {top}; expected at least 1")
    gallery = Gallery.open(gallery_path)
    found = gallery.search(encode_query(gallery.model(), query), top)
    return found_json(gallery, found) if as_json else found_table(gallery, found)
