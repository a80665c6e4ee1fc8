"""Evaluation of models on a split of DATA by its protocol, results kept in runs, and their comparison."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosspair.data.dataset import PreparedSplit, open_data
from crosspair.encode.model import DualEncoder
from crosspair.encode.split import embed_split
from crosspair.encode.storage import model_checksum
from crosspair.evaluation import comparison
from crosspair.evaluation.comparison import Comparison
from crosspair.evaluation.csls import evaluate_csls
from crosspair.evaluation.eccv import coco_image_ids
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.ensemble import join_ensemble
from crosspair.evaluation.options import USUAL, RankingOptions
from crosspair.evaluation.protocols import (
    Evaluation,
    Protocol,
    Rankable,
    arrange,
    choose_protocol,
    find_protocol,
    plugin_facts,
)
from crosspair.evaluation.query_table import query_table, write_queries
from crosspair.evaluation.ranking import DIRECTIONS
from crosspair.evaluation.results import (
    OutdatedResultError,
    StoredResult,
    labels_checksum,
    read_result,
    write_result,
)
from crosspair.evaluation.trec import write_trec
from crosspair.evaluation.uncertainty import Intervals, intervals_of
from crosspair.storage.directories import kind_of
from crosspair.training.callbacks import RunResult
from crosspair.training.recipe_files import read_run_recipe, save_recipe
from crosspair.training.record import command_line, now
from crosspair.training.run import data_directory, model_directory, warn_of_training_split
from crosspair.version import __version__


@dataclass(frozen=True)
class Measured:
    """An evaluation, what it was made from, and the facts that are stored with it.

    captions: the split's texts, in the order of the embeddings, where they are known.
    """

    evaluation: Evaluation
    embeddings: Rankable
    facts: dict[str, Any]
    captions: tuple[str, ...] | None = None

    def with_csls(self, device: str = "cpu") -> "Measured":
        """The same with the metrics by CSLS beside the others."""
        evaluation = self.evaluation
        result = evaluation.result
        found = evaluate_csls(
            evaluation.protocol,
            self.embeddings,
            result.metric_definition,
            device=device,
            directions=[name for name in DIRECTIONS if name in result.directions],
            distractors=any(result.distractors),
        )
        return replace(self, evaluation=replace(evaluation, beside={**evaluation.beside, "CSLS": found}))

    def store(self, paths: list[Path]) -> Intervals:
        """Write the result to each of the paths; the intervals of its metrics."""
        intervals = intervals_of(self.evaluation)
        for path in paths:
            write_result(path, self.evaluation, intervals, self.facts)
        return intervals

    def export(self, trec: Path | None, queries: Path | None) -> str:
        """Write rankings in TREC's formats and the table of queries, if paths are given; lines that say where."""
        lines = []
        if trec is not None:
            tasks = arrange(self.evaluation.protocol, self.embeddings)
            directions = tuple(self.evaluation.result.directions)
            written = write_trec(trec, tasks, self.evaluation.result.metric, directions=directions)
            lines.append("TREC: " + ", ".join(map(str, written)))
        if queries is not None:
            protocol = self.evaluation.protocol
            captions = self.captions if protocol.text_unit == Protocol.text_unit else None
            table = query_table(self.evaluation, arrange(protocol, self.embeddings), captions, progress=True)
            write_queries(queries, table)
            lines.append(f"queries: {queries} ({len(table):,} rows)")
        return "".join(f"\n{line}" for line in lines)

    @property
    def size(self) -> str:
        """How many pictures and captions there were."""
        return f"{self.facts['images']:,} pictures, {self.facts['captions']:,} captions"

    def describe(self, intervals: Intervals) -> str:
        return f"{self.size}\n{self.evaluation.to_table()}\n{intervals.to_table(self.evaluation)}"


def compare(
    *runs: RunResult | StoredResult | str | Path,
    data: str | Path | None = None,
    split: str = "test",
    protocol: str | None = None,
    device: str = "auto",
) -> Comparison:
    """Runs, models and stored results beside each other, the first being what the others are compared with.

    runs: results of `train`, RUN directories, models' directories, RESULT.json files; the seeds of one recipe are one
    row of the comparison. What is not evaluated yet is encoded on `device` and ranked by `protocol` (None: by that of
    its data) on a split of `data`, a DATA directory (None: the one that a RUN was validated on). Values are percentages
    0..100 and ranks from 1; intervals and differences are over the draw of queries.
    Raises UserError unless there are two or more, of the same queries and protocol.
    """
    given = None if data is None else Path(data)
    results = []
    for each in runs:
        name = each.run if isinstance(each, RunResult) else each
        found = name if isinstance(name, StoredResult) else result_of(str(name), given, split, protocol, device)
        results.append(found)
    return comparison.compare(results)


def result_of(
    name: str, data: Path | None, split_name: str, protocol_name: str | None = None, device: str = "auto"
) -> StoredResult:
    """The result of a RUN, a model or a RESULT.json on a split: as it is stored, or evaluated now and stored in a RUN.

    data: what is evaluated on; None takes a RUN's own. Raises UserError for what can't be read or evaluated.
    """
    if Path(name).is_file():
        return read_result(Path(name))
    own = own_path(name, split_name, protocol_name)
    if own is not None and own.is_file():
        with suppress(OutdatedResultError):
            stored = read_result(own)
            if _is_current(stored, name, data, split_name):
                return stored
    measured = measure_model(
        name, data or data_directory(Path(name)), split_name, protocol_name=protocol_name, device=device
    )
    if own is not None:
        measured.store([own])
    facts = {
        **measured.facts,
        "protocol": measured.evaluation.protocol.name,
        "metric": measured.evaluation.result.metric,
    }
    return StoredResult(own or Path(name), facts, measured.evaluation)


def _is_current(stored: StoredResult, name: str, data: Path | None, split_name: str) -> bool:
    """Whether a RUN's model, the data and the plugin of its protocol are still those it was evaluated with."""
    if stored.facts.get("model_checksum") != model_checksum(model_directory(name)):
        return False
    own = plugin_facts(stored.evaluation.protocol)
    if stored.facts.get("protocol_plugin") != own.get("protocol_plugin"):
        return False
    return data is None or stored.facts.get("checksum") == open_data(data).split(split_name).checksum


def measure_model(
    name: str,
    data: Path,
    split_name: str,
    options: RankingOptions = USUAL,
    protocol_name: str | None = None,
    *,
    device: str = "auto",
    needs: Sequence[str] = (),
) -> Measured:
    """Encode a split of DATA with a model and evaluate it, on the device of that name.

    needs: options whose files are written of the tasks that the protocol arranges, as --trec.
    """
    return measure_ensemble([name], data, split_name, options, protocol_name, device=device, needs=needs)


def measure_ensemble(
    names: Sequence[str],
    data: Path,
    split_name: str,
    options: RankingOptions = USUAL,
    protocol_name: str | None = None,
    *,
    device: str = "auto",
    needs: Sequence[str] = (),
) -> Measured:
    """Encode a split of DATA with each of some models and evaluate the mean of their similarities.

    needs: as for `measure_model`.
    """
    named = find_protocol(protocol_name) if protocol_name else None
    directories = [model_directory(name) for name in names]
    opened = open_data(data)
    split = opened.split(split_name)
    source = str(opened.manifest.source.get("format", ""))
    protocol = named or choose_protocol(source, split_name, len(split))
    for option in needs:
        protocol.check_tasks(option)
    check_split(protocol, split)
    for name in names:
        warn_of_training_split(name, data, split_name)
    members, encoders = [], []
    for directory in directories:
        model = DualEncoder.from_pretrained(directory, device=device)
        members.append(embed(model, split))
        encoders.append(encoder_facts(model))
        where = ranking_device(model.device)
        del model
    joined = {key: _listed([each[key] for each in encoders]) for key in encoders[0]}
    facts = {
        "model": directories[0] if len(names) == 1 else _listed(names),
        "model_checksum": _listed([model_checksum(directory) for directory in directories]),
        **(recipe_facts(Path(names[0])) if len(names) == 1 else {"ensemble": len(names)}),
        **joined,
        "data": str(data),
        "data_format": source,
        "split": split_name,
        "checksum": split.checksum,
    }
    embeddings = members[0] if len(names) == 1 else join_ensemble(members, names, options.metric)
    evaluation = options.evaluate(protocol, embeddings, where, progress=True)
    captions = tuple(caption for of_image in split.captions for caption in of_image)
    return replace(measured_from(evaluation, embeddings, facts, options), captions=captions)


def encoder_facts(model: DualEncoder) -> dict[str, str]:
    """What encoded: the encoders' names, and backend, device and precision."""
    backend = model.backend.name if model.backend is not None else f"torch {torch.__version__}, float32"
    return {
        "image_encoder": model.config.image.name,
        "text_encoder": model.config.text.name,
        "encoder": f"{backend}, on {model.device}",
    }


def _listed(values: Sequence[str]) -> str:
    """Of one model its value, of several all that differ."""
    return " + ".join(dict.fromkeys(values))


def check_split(protocol: Protocol, split: PreparedSplit) -> None:
    """Raise UserError, before everything is encoded, unless a split fits a protocol."""
    text_labels = np.repeat(split.labels, [len(captions) for captions in split.captions])
    protocol.check(split.labels, text_labels, with_ids=split.caption_ids is not None)


def embed(model: Any, split: PreparedSplit) -> Embeddings:
    """The embeddings of a split, with names for exported rankings and the image of every caption."""
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


def own_path(name: str, split_name: str, protocol_name: str | None, options: RankingOptions = USUAL) -> Path | None:
    """The path of a RUN's result on a split; None for what is no RUN, or can't be written to.

    RUN/evaluation/SPLIT.json by the protocol of its DATA, RUN/evaluation/SPLIT.PROTOCOL.json by one that was named;
    what is ranked otherwise than usual has that in its name, too.
    """
    run = Path(name)
    if kind_of(run) != "RUN" or not os.access(run, os.W_OK):
        return None
    protocol = f".{protocol_name}" if protocol_name else ""
    return run / "evaluation" / f"{split_name}{protocol}{options.suffix}.json"


def recipe_facts(run: Path) -> dict[str, Any]:
    """A RUN's recipe, its seed, and a checksum that only runs of the same recipe share, whatever their seeds."""
    if kind_of(run) != "RUN":
        return {}
    recipe = read_run_recipe(run)
    without_seed = save_recipe(replace(recipe, seed=0))
    checksum = hashlib.sha256(without_seed.encode()).hexdigest()
    return {"recipe": recipe.name, "seed": recipe.seed, "recipe_checksum": checksum}


def ranking_device(device: torch.device) -> str:
    """The device to rank embeddings of `device` on: the same if it is a GPU with int64 and float64, else the CPU."""
    return "cpu" if device.type == "mps" else str(device)


def measured_from(
    evaluation: Evaluation, embeddings: Rankable, facts: dict[str, Any], options: RankingOptions = USUAL
) -> Measured:
    """An evaluation of these embeddings; facts tells what they are of, options how they were ranked."""
    more = {
        **options.facts(),
        "images": len(embeddings.image_labels),
        "captions": len(embeddings.text_labels),
        "labels_checksum": labels_checksum(embeddings.image_labels, embeddings.text_labels),
        **plugin_facts(evaluation.protocol),
    }
    made = {"crosspair": __version__, "command": command_line(), "date": now()}
    return Measured(evaluation, embeddings, {**made, **facts, **more})
