"""crosspair evaluate: a model on a split of DATA, or embeddings from files, ranked by a protocol."""

import hashlib
import os
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from crosspair.devices import find_device
from crosspair.errors import UserError
from crosspair.evaluation.counting import Counting
from crosspair.evaluation.csls import evaluate_csls
from crosspair.evaluation.eccv import coco_image_ids
from crosspair.evaluation.embeddings import Embeddings, read_embeddings
from crosspair.evaluation.metrics import MetricDefinition
from crosspair.evaluation.protocols import (
    PLAIN,
    Evaluation,
    Protocol,
    Task,
    arrange,
    choose_protocol,
    evaluation_of,
    find_protocol,
    plugin_facts,
)
from crosspair.evaluation.ranking import prepare_counting, ranks_of
from crosspair.evaluation.results import labels_checksum, ranks_path, write_result
from crosspair.evaluation.shards import count_shard, merge_parts, parse_shard
from crosspair.evaluation.trec import write_trec
from crosspair.evaluation.uncertainty import Intervals, bootstrap
from crosspair.storage.files import refuse_directory
from crosspair.version import __version__

if TYPE_CHECKING:
    from crosspair.data.dataset import PreparedSplit


@dataclass(frozen=True)
class Measured:
    """An evaluation, what it was made from, and the facts that are stored with it."""

    evaluation: Evaluation
    embeddings: Embeddings
    facts: dict[str, Any]

    def with_csls(self, device: str = "cpu") -> "Measured":
        """The same with the metrics by CSLS beside the others."""
        evaluation = self.evaluation
        found = evaluate_csls(
            evaluation.protocol, self.embeddings, evaluation.result.image_to_text.metric_definition, device=device
        )
        return replace(self, evaluation=replace(evaluation, beside={**evaluation.beside, "CSLS": found}))

    def store(self, paths: list[Path]) -> Intervals:
        """Write the result to each of the paths; the intervals of its metrics."""
        intervals = bootstrap(self.evaluation)
        for path in paths:
            write_result(path, self.evaluation, intervals, self.facts)
        return intervals

    def export(self, prefix: Path | None) -> str:
        """Write rankings and judgements in TREC's formats; a line that says where, nothing without a prefix."""
        if prefix is None:
            return ""
        tasks = arrange(self.evaluation.protocol, self.embeddings)
        return "\nTREC: " + ", ".join(map(str, write_trec(prefix, tasks, self.evaluation.result.metric)))

    def describe(self, intervals: Intervals) -> str:
        size = f"{self.facts['images']:,} pictures, {self.facts['captions']:,} captions"
        return f"{size}\n{self.evaluation.to_table()}\n{intervals.to_table(self.evaluation)}"


def run(options: Namespace) -> None:
    """Evaluate what was given, a model or embeddings or a part of their ranking, and print the table."""
    if options.part is not None and not options.shard:
        raise UserError("--part is the file that --shard K/N counts into; give both or none")
    if options.embeddings is None:
        text = _evaluate_model(options)
    elif options.model or options.data or options.split:
        raise UserError("--embeddings takes the place of RUN, --data and --split; give one or the others")
    elif options.shard:
        text = _count_shard(options)
    elif options.merge:
        text = _merge_parts(options)
    else:
        text = _evaluate_embeddings(options)
    print(text)


def _evaluate_model(options: Namespace) -> str:
    """The table of a model on a split of DATA; its result goes to --output and into a RUN."""
    if options.model is None or options.data is None:
        raise UserError("expected crosspair evaluate RUN --data DATA, or crosspair evaluate --embeddings FILE")
    if options.shard or options.merge:
        raise UserError("--shard and --merge are for --embeddings; evaluate RUN as a whole")
    if options.output is not None:
        refuse_directory(options.output)  # before everything is encoded
    find_device(options.device)  # before anything is read
    if options.protocol:
        _check_tasks(options, find_protocol(options.protocol))
    split_name = options.split or "test"
    measured = measure_model(
        options.model, options.data, split_name, options.metric_definition, options.protocol, device=options.device
    )
    if options.csls:
        measured = measured.with_csls(ranking_device(find_device(options.device)))
    own = own_path(options.model, split_name, options.protocol)
    intervals = measured.store([path for path in (options.output, own) if path])
    return f"{split_name}: {measured.describe(intervals)}{measured.export(options.trec)}"


def _evaluate_embeddings(options: Namespace) -> str:
    """The table of a file or a directory of embeddings and labels."""
    protocol = _named_protocol(options)
    _check_tasks(options, protocol)
    device = _chosen_ranking_device(options.device)
    _refuse_to_replace(options.embeddings, options.output)
    embeddings = read_embeddings(options.embeddings)
    definition = options.metric_definition
    evaluation = protocol.evaluate(embeddings, metric_definition=definition, device=device, progress=True)
    measured = _measured(evaluation, embeddings, {"embeddings": str(options.embeddings)})
    if options.csls:
        measured = measured.with_csls(device)
    intervals = measured.store([options.output] if options.output else [])
    return f"{options.embeddings}: {measured.describe(intervals)}{measured.export(options.trec)}"


def _count_shard(options: Namespace) -> str:
    """Count one shard of the ranking of embeddings into a part, or go on with it."""
    if options.part is None:
        raise UserError("--shard needs a file to count into; expected --part PART.npz")
    if options.output is not None:
        raise UserError("a shard has no result to write to --output; name the file it counts into with --part")
    _refuse_what_parts_lack(options)
    shard = parse_shard(options.shard)
    protocol = _named_protocol(options)
    device = _chosen_ranking_device(options.device)
    refuse_directory(options.part, "--part")
    task, counting = _single_task(protocol, read_embeddings(options.embeddings), device)
    count_shard(counting, shard, options.part, _shard_facts(protocol, task))
    return (
        f"{options.part}: shard {shard[0]} of {shard[1]}, complete\n"
        f"when all are there: crosspair evaluate --embeddings {options.embeddings} --merge PART PART ..."
    )


def _merge_parts(options: Namespace) -> str:
    """The table that all shards of a ranking amount to."""
    if options.device != "auto":
        raise UserError("--merge adds up what was counted and needs no device; leave --device out")
    _refuse_what_parts_lack(options)
    protocol = _named_protocol(options)
    _refuse_to_replace(options.embeddings, options.output)
    embeddings = read_embeddings(options.embeddings)
    task, counting = _single_task(protocol, embeddings, "cpu")
    merge_parts(counting, options.merge, _shard_facts(protocol, task))
    evaluation = evaluation_of(protocol, [task], [ranks_of(counting)], metric_definition=options.metric_definition)
    measured = _measured(evaluation, embeddings, {"embeddings": str(options.embeddings)})
    intervals = measured.store([options.output] if options.output else [])
    return f"{options.embeddings}, {len(options.merge)} parts: {measured.describe(intervals)}"


def _refuse_what_parts_lack(options: Namespace) -> None:
    if options.trec:
        raise UserError("--trec needs all scores, which no part keeps; leave it out, or --shard and --merge")
    if options.csls:
        raise UserError("--csls takes all queries together; leave it out, or --shard and --merge")


def ranking_device(device: torch.device) -> str:
    """Where embeddings that `device` made are ranked: there if it is a GPU with int64 and float64, else on the CPU."""
    return "cpu" if device.type == "mps" else str(device)


def _chosen_ranking_device(name: str) -> str:
    return ranking_device(find_device()) if name == "auto" else str(find_device(name))


def _named_protocol(options: Namespace) -> Protocol:
    return find_protocol(options.protocol) if options.protocol else PLAIN


def _check_tasks(options: Namespace, protocol: Protocol) -> None:
    """Before anything is encoded or ranked: whether the protocol has what the options rank or export."""
    for option, given in (("--csls", options.csls), ("--trec", options.trec)):
        if given:
            protocol.check_tasks(option)


def measure_model(
    name: str,
    data: Path,
    split_name: str,
    definition: MetricDefinition = "exact",
    protocol_name: str | None = None,
    *,
    device: str = "auto",
) -> Measured:
    """Encode a split of DATA with a model and evaluate it, on the device of that name."""
    from crosspair.data.dataset import open_data
    from crosspair.encode.model import DualEncoder
    from crosspair.encode.storage import model_checksum
    from crosspair.training.run import model_directory

    named = find_protocol(protocol_name) if protocol_name else None
    directory = model_directory(name)
    opened = open_data(data)
    split = opened.split(split_name)
    protocol = named or choose_protocol(str(opened.manifest.source.get("format", "")), split_name, len(split))
    counts = [len(captions) for captions in split.captions]
    text_labels = np.repeat(split.labels, counts)
    protocol.check(split.labels, text_labels, with_ids=split.caption_ids is not None)  # before everything is encoded
    model = DualEncoder.from_pretrained(directory, device=device)
    embeddings = embed(model, split)
    facts = {
        "model": directory,
        "model_checksum": model_checksum(directory),
        **recipe_facts(Path(name)),
        "data": str(data),
        "split": split_name,
        "checksum": split.checksum,
    }
    evaluation = protocol.evaluate(
        embeddings, metric_definition=definition, device=ranking_device(model.device), progress=True
    )
    return _measured(evaluation, embeddings, facts)


def _single_task(protocol: Protocol, embeddings: Embeddings, device: str) -> tuple[Task, Counting]:
    protocol.check_tasks("--shard")
    tasks = arrange(protocol, embeddings)
    if len(tasks) > 1:
        raise UserError(f"protocol {protocol.name} has {len(tasks)} folds, small ones; evaluate them without --shard")
    data = tasks[0].embeddings
    counting = prepare_counting(data.images, data.texts, data.image_labels, data.text_labels, device=device)
    return tasks[0], counting


def _shard_facts(protocol: Protocol, task: Task) -> dict[str, Any]:
    labels = labels_checksum(task.embeddings.image_labels, task.embeddings.text_labels)
    return {"protocol": protocol.name, "labels_checksum": labels}


def _refuse_to_replace(embeddings: Path, output: Path | None) -> None:
    if output is None:
        return
    refuse_directory(output)
    if embeddings.resolve() in (output.resolve(), ranks_path(output).resolve()):
        raise UserError(f"the result would replace the embeddings in {embeddings}; name another --output")


def embed(model: Any, split: "PreparedSplit") -> Embeddings:
    """The embeddings of a split, with names for exported rankings and the picture of every caption."""
    from crosspair.encode.split import embed_split

    seen = embed_split(model, split, progress=True)
    counts = [len(captions) for captions in split.captions]
    rows = np.repeat(np.arange(len(counts)), counts)
    numbers = np.concatenate([np.arange(count) for count in counts])
    ids = split.caption_ids
    return Embeddings.checked(
        seen.images,
        seen.texts,
        seen.image_labels,
        seen.text_labels,
        rows,
        tuple(split.image_ids),
        tuple(f"{split.image_ids[row]}#{number}" for row, number in zip(rows, numbers, strict=True)),
        None if ids is None else coco_image_ids(split.image_ids),
        None if ids is None else np.concatenate([np.array(each, dtype=np.int64) for each in ids]),
    )


def own_path(name: str, split_name: str, protocol_name: str | None) -> Path | None:
    """Where a RUN keeps its result on a split; None for what is no RUN, or can't be written to.

    RUN/evaluation/SPLIT.json by the protocol of its DATA, RUN/evaluation/SPLIT.PROTOCOL.json by one that was named.
    """
    run = Path(name)
    if not (run / "recipe.yaml").is_file() or not os.access(run, os.W_OK):
        return None
    return run / "evaluation" / (f"{split_name}.{protocol_name}.json" if protocol_name else f"{split_name}.json")


def recipe_facts(run: Path) -> dict[str, Any]:
    """A RUN's recipe, its seed, and a checksum that only runs of the same recipe share, whatever their seeds."""
    if not (run / "recipe.yaml").is_file():
        return {}
    from crosspair.training.recipe_files import read_run_recipe, save_recipe

    recipe = read_run_recipe(run)
    without_seed = save_recipe(replace(recipe, seed=0))
    checksum = hashlib.sha256(without_seed.encode()).hexdigest()
    return {"recipe": recipe.name, "seed": recipe.seed, "recipe_checksum": checksum}


def _measured(evaluation: Evaluation, embeddings: Embeddings, facts: dict[str, Any]) -> Measured:
    more = {
        "images": len(embeddings.images),
        "captions": len(embeddings.texts),
        "labels_checksum": labels_checksum(embeddings.image_labels, embeddings.text_labels),
        **plugin_facts(evaluation.protocol),
    }
    return Measured(evaluation, embeddings, {"crosspair": __version__, **facts, **more})
