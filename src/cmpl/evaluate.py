"""The command evaluate: a model on a split, or anyone's embeddings from a file, by a protocol."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmpl.commands import model_directory
from cmpl.evaluation.embeddings import Embeddings, read_embeddings
from cmpl.evaluation.metrics import MetricDefinition
from cmpl.evaluation.protocols import PLAIN, check_fits, choose_protocol, evaluate_protocol, find_protocol
from cmpl.files import write_text

if TYPE_CHECKING:
    from cmpl.data.dataset import Split


def evaluate_model_command(
    name: str,
    data: Path,
    split_name: str,
    output: Path | None,
    definition: MetricDefinition = "exact",
    protocol_name: str | None = None,
) -> str:
    """Evaluate a model on a split of DATA; the table, and the numbers as JSON in `output`.

    protocol_name: chosen from DATA when None.
    """
    from cmpl.data.dataset import open_data
    from cmpl.models.dual_encoder import DualEncoder

    named = find_protocol(protocol_name) if protocol_name else None
    directory = model_directory(name)
    opened = open_data(data)
    split = opened.split(split_name)
    source = str(opened.manifest.source.get("format", ""))
    protocol = named or choose_protocol(source, split_name, len(split))
    counts = [len(captions) for captions in split.captions]
    check_fits(protocol, split.labels, np.repeat(split.labels, counts))  # before everything is encoded
    embeddings = embed(DualEncoder.from_pretrained(directory), split)
    evaluation = evaluate_protocol(protocol, embeddings, metric_definition=definition)
    facts = {"model": directory, "data": str(data), "split": split_name, **_counts(embeddings)}
    _write(output, {**facts, **evaluation.to_dict()})
    return f"{split_name}: {_describe(embeddings)}\n{evaluation.to_table()}"


def evaluate_embeddings_command(
    path: Path, output: Path | None, definition: MetricDefinition = "exact", protocol_name: str | None = None
) -> str:
    """Evaluate an .npz file of embeddings and labels; `plain` unless a protocol is named."""
    protocol = find_protocol(protocol_name) if protocol_name else PLAIN
    embeddings = read_embeddings(path)
    evaluation = evaluate_protocol(protocol, embeddings, metric_definition=definition)
    _write(output, {"embeddings": str(path), **_counts(embeddings), **evaluation.to_dict()})
    return f"{path}: {_describe(embeddings)}\n{evaluation.to_table()}"


def embed(model: Any, split: "Split") -> Embeddings:
    """The embeddings of a split, with names for exported rankings and the picture of every caption."""
    from cmpl.models.embed import embed_split

    seen = embed_split(model, split, progress=True)
    counts = [len(captions) for captions in split.captions]
    names = [
        (image_id, number) for image_id, count in zip(split.image_ids, counts, strict=True) for number in range(count)
    ]
    return Embeddings.checked(
        seen.images,
        seen.texts,
        seen.image_labels,
        seen.text_labels,
        np.repeat(np.arange(len(counts)), counts),
        tuple(split.image_ids),
        tuple(f"{image_id}#{number}" for image_id, number in names),
    )


def _counts(embeddings: Embeddings) -> dict[str, int]:
    return {"pictures": len(embeddings.images), "captions": len(embeddings.texts)}


def _describe(embeddings: Embeddings) -> str:
    return f"{len(embeddings.images):,} pictures, {len(embeddings.texts):,} captions"


def _write(output: Path | None, numbers: dict[str, Any]) -> None:
    if output is not None:
        write_text(output, json.dumps(numbers, indent=2) + "\n")
