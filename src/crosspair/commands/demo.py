"""crosspair demo: prepare, train, evaluate, report and index on built-in drawings."""

import os
import shutil
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from crosspair.commands.report import report_run
from crosspair.data.dataset import Data, open_data
from crosspair.data.openmoji import openmoji_records
from crosspair.data.prepare import prepare
from crosspair.devices import find_device
from crosspair.encode.model import DualEncoder
from crosspair.encode.split import embed_split
from crosspair.errors import UserError
from crosspair.gallery.indexing import index_images
from crosspair.storage.directories import kind_of
from crosspair.training.loop import train
from crosspair.training.recipe_files import load_recipe
from crosspair.training.run import finished

if TYPE_CHECKING:
    from crosspair.data.dataset import PreparedSplit

QUERIES = 4  # examples in words


def run(options: Namespace) -> None:
    """Run all steps of the demo in --output, continuing from what an earlier demo left there."""
    run_demo(options.output, quick=options.quick, device=options.device)


def run_demo(output: Path, *, quick: bool, device: str = "auto") -> None:
    """Prepare OUTPUT/data, train in OUTPUT/run (or OUTPUT/run-quick), print what came of it, leave a gallery to search.

    What an earlier demo left in OUTPUT is gone on from. Raises UserError when OUTPUT holds something else.
    """
    started = time.monotonic()
    find_device(device)  # before anything is drawn
    recipe = load_recipe("demo-quick" if quick else "demo", ["--device", device])
    run = output / ("run-quick" if quick else "run")
    _refuse_foreign(output)
    data = _data(output / "data")
    counts = ", ".join(f"{len(data.split(name)):,} {name}" for name in data.split_names)
    print(f"data: {counts} drawings of emoji (OpenMoji, CC BY-SA 4.0) with their names, in {data.path}")
    if finished(run):
        print(f"training: {run} is there already")
    else:
        print(f"training: recipe {recipe.name}, {recipe.summary}")
        train(recipe, data, run, resume=kind_of(run) == "RUN")
    evaluation = report_run(run, data.path, "test", run / "report.html", device=device)
    model = DualEncoder.from_pretrained(run / "model", device=device)
    print("\ntest: emoji that training never saw, so this measures known words on new drawings\n")
    print(evaluation.to_table())
    print(_examples(model, data.split("test")))
    gallery = output / ("gallery-quick" if quick else "gallery")
    index_images(run / "model", data.path, gallery, splits=["test"], device=device)
    print(f"done in {time.monotonic() - started:.0f} s\nmodel: {run / 'model'}\nreport: {run / 'report.html'}")
    print(f"search the test drawings: {_command()} serve {gallery}, then open http://127.0.0.1:8000")


def _command() -> str:
    """What starts crosspair from this shell: after `make demo` its environment is not on PATH."""
    if shutil.which("crosspair"):
        return "crosspair"
    beside = Path(sys.executable).with_name("crosspair")
    return os.path.relpath(beside) if beside.is_file() else f"{sys.executable} -m crosspair"


def _refuse_foreign(output: Path) -> None:
    if output.is_file():
        raise UserError(f"{output} is a file; expected a directory for the demo, name another --output")
    foreign = [path.name for path in output.iterdir() if not _ours(path)] if output.is_dir() else []
    if foreign:
        raise UserError(f"{output} holds {foreign[0]}, which no demo wrote; name another --output")


def _ours(path: Path) -> bool:
    return path.name in {"data", "run", "run-quick", "gallery", "gallery-quick"} or path.name.startswith(".data.")


def _data(path: Path) -> Data:
    if not path.exists():
        print("drawing the emoji ...", file=sys.stderr)
        prepare(openmoji_records(), path, source={"format": "openmoji"})
    return open_data(path)


def _examples(model: DualEncoder, split: "PreparedSplit") -> str:
    """A table of a few names, evenly spread over the split, and the drawings found for them."""
    seen = embed_split(model, split)
    names = [captions[0].removeprefix("a drawing of ") for captions in split.captions]
    first_caption = torch.tensor([0, *[len(captions) for captions in split.captions]]).cumsum(0)[:-1]
    lines = ["the three best drawings for a few names (the relevant one in [brackets])"]
    for row in range(len(split) // (2 * QUERIES), len(split), len(split) // QUERIES):
        scores = seen.images @ seen.texts[first_caption[row]]
        found = [
            f"[{names[index]}]" if seen.image_labels[index] == seen.image_labels[row] else names[index]
            for index in scores.topk(3).indices.tolist()
        ]
        lines.append(f'  "{seen.captions[int(first_caption[row])]}": {", ".join(found)}')
    return "\n".join([*lines, ""])
