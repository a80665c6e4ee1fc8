"""crosspair report: one self-contained HTML page about a run."""

from argparse import Namespace
from pathlib import Path

from crosspair.data.dataset import Data, open_data
from crosspair.devices import find_device
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.evaluation.protocols import Evaluation, Protocol, choose_protocol, find_protocol
from crosspair.report.page import write_report
from crosspair.storage.directories import expect_kind
from crosspair.training.log import read_metrics
from crosspair.training.measure import check_split, embed, ranking_device
from crosspair.training.recipe_files import read_run_recipe
from crosspair.training.run import data_directory, model_directory


def run(options: Namespace) -> None:
    """Write a run's report and print where it is."""
    path = options.output or options.run_directory / "report.html"
    report_run(options.run_directory, options.data, options.split, path, options.protocol, device=options.device)
    print(f"report: {path}")


def report_run(
    run: Path,
    data: Path | None,
    split_name: str,
    path: Path,
    protocol_name: str | None = None,
    *,
    device: str = "auto",
) -> None:
    """Evaluate the model of a finished RUN on a split of DATA, by default RUN's own, and write its report."""
    find_device(device)
    protocol = find_protocol(protocol_name) if protocol_name else None
    expect_kind(run, "RUN")
    directory = model_directory(str(run))
    history = read_metrics(run)
    if not history:
        raise UserError(
            f"{run} has no metrics.jsonl; expected a training run as `crosspair train --output RUN` writes it"
        )
    opened = open_data(data or data_directory(run))
    opened.split(split_name)  # before the model is loaded
    write_run_report(path, run, DualEncoder.from_pretrained(directory, device=device), opened, split_name, protocol)


def write_run_report(
    path: Path, run: Path, model: DualEncoder, data: Data, split_name: str, protocol: Protocol | None = None
) -> Evaluation:
    """Evaluate `model` on a split, by default by the protocol of its data, and write its run's report; the evaluation.

    Raises UserError when the split doesn't fit the protocol.
    """
    recipe = read_run_recipe(run)
    split = data.split(split_name)
    protocol = protocol or choose_protocol(str(data.manifest.source.get("format", "")), split_name, len(split))
    check_split(protocol, split)
    embeddings = embed(model, split)
    evaluation = protocol.evaluate(embeddings, device=ranking_device(model.device))
    facts = {
        "Recipe": f"{recipe.name}: {recipe.summary}",
        "Split": f"{split_name}, {len(embeddings.images):,} pictures with {len(embeddings.texts):,} captions",
        "Image encoder": recipe.model.image.name,
        "Losses": ", ".join(f"{name} {weight:g}" for name, weight in recipe.loss_weights.items()),
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
