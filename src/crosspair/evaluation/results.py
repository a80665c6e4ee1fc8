"""Results on disk: RESULT.json for people and scripts, RESULT.ranks.npz with every query's for later comparisons.

The latter holds, for `image_to_text` and `text_to_image` each, or the one that was evaluated,
    DIRECTION_ranks [pairs]        ranks of all positives, ascending within a query
    DIRECTION_positives [queries]  how many of them belong to each query
    DIRECTION_queries [queries]    the row of each query on its side
    DIRECTION_optimistic [queries] rank of each query's first positive with every tie for the model
    DIRECTION_labels [queries]     the label of each query; those of one label are found or missed together
    DIRECTION_gallery_size []      how many items were ranked
from which every metric follows without encoding anything again.
"""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosspair.errors import UserError
from crosspair.evaluation.metrics import DirectionResult, RetrievalResult
from crosspair.evaluation.protocols import Evaluation, Protocol, find_protocol
from crosspair.evaluation.ranking import DIRECTIONS, Direction, Metric, PositiveRanks
from crosspair.evaluation.uncertainty import Intervals
from crosspair.storage import manifest as manifests
from crosspair.storage.files import write_bytes, write_text

FORMAT = 2
_ADVICE = "evaluate again with crosspair evaluate ... --output RESULT.json"


@dataclass(frozen=True)
class _Decisive:
    """The fields of RESULT.json without which it can't be read; the others only tell of it."""

    protocol: str
    metric: Metric
    ranks_checksum: str


_DECISIVE = tuple(_Decisive.__annotations__)


class OutdatedResultError(UserError):
    """A result of an older format, to be evaluated again."""


@dataclass(frozen=True)
class StoredResult:
    """An evaluation as it was stored. facts: the fields of its JSON, among them what was evaluated on what."""

    path: Path
    facts: dict[str, Any]
    evaluation: Evaluation


def write_result(path: Path, evaluation: Evaluation, intervals: Intervals, facts: dict[str, Any]) -> None:
    """Write RESULT.json and, beside it, RESULT.ranks.npz.

    facts: what was evaluated (`model` or `embeddings`, `data`, `split`, `checksum`, `labels_checksum` ...).
    """
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **_direction_arrays(evaluation))
    ranks = ranks_path(path)
    written = {
        "format": FORMAT,
        **facts,
        "metric": evaluation.result.metric,
        **evaluation.to_dict(),
        "intervals": intervals.to_dict(),
        "ranks": ranks.name,
        "ranks_checksum": hashlib.sha256(arrays.getvalue()).hexdigest(),
    }
    write_bytes(ranks, arrays.getvalue())
    write_text(path, json.dumps(written, indent=2) + "\n")


def read_result(path: Path) -> StoredResult:
    """Raises UserError for a file that is no result, is damaged, of a newer format, or has lost its .npz.

    For one of an older format that is an OutdatedResultError.
    """
    problem = "is no result of crosspair evaluate"
    facts = manifests.read_object(path, FORMAT, _ADVICE, problem)
    with manifests.damage_named(path, _ADVICE, problem):
        decisive = {field: facts[field] for field in _DECISIVE if field in facts}
        known = manifests.parse(_Decisive, decisive)
    if facts["format"] < FORMAT:
        raise OutdatedResultError(f"{path} has format {facts['format']}, without what intervals need now; {_ADVICE}")
    protocol = find_protocol(known.protocol)
    checksum, metric = known.ranks_checksum, known.metric
    ranks = ranks_path(path)
    if not ranks.is_file():
        raise UserError(f"{path} has lost {ranks.name}, the ranks beside it; copy both, or {_ADVICE}")
    data = ranks.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksum:
        raise UserError(f"{ranks} is not the one that {path.name} was written with; copy both, or {_ADVICE}")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: _direction(arrays, name, protocol) for name in DIRECTIONS if f"{name}_ranks" in arrays}
            if not found:
                raise ValueError("it has no ranks")
    except (ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{ranks} is damaged ({error!r:.80}); {_ADVICE}") from error
    results = {name: result for name, (result, _) in found.items()}
    labels: dict[str, NDArray[np.int64]] = {name: each for name, (_, each) in found.items()}
    result = RetrievalResult(results.get("image_to_text"), results.get("text_to_image"), metric)
    return StoredResult(path, facts, Evaluation(protocol, result, (), labels))


def ranks_path(path: Path) -> Path:
    """The path of the ranks beside RESULT.json."""
    return path.with_name((path.stem if path.suffix == ".json" else path.name) + ".ranks.npz")


def labels_checksum(image_labels: NDArray[np.int64], text_labels: NDArray[np.int64]) -> str:
    """Checksum of which images and texts match, the same however the labels are numbered."""
    both = np.concatenate([image_labels, text_labels])
    _, first, number = np.unique(both, return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(first))[number].astype("<i8")
    sizes = np.array([len(image_labels), len(text_labels)], dtype="<i8")
    return hashlib.sha256(sizes.tobytes() + appearance.tobytes()).hexdigest()


def _direction_arrays(evaluation: Evaluation) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, direction in evaluation.result.directions.items():
        ranks = direction.ranks
        small = np.uint16 if ranks.gallery_size < 2**16 else np.uint32 if ranks.gallery_size < 2**32 else np.int64
        arrays[f"{name}_ranks"] = ranks.ranks.astype(small)
        arrays[f"{name}_positives"] = ranks.positives.astype(small)
        arrays[f"{name}_queries"] = ranks.queries
        arrays[f"{name}_optimistic"] = ranks.optimistic.astype(small)
        arrays[f"{name}_labels"] = evaluation.query_labels[name]
        arrays[f"{name}_gallery_size"] = np.array(ranks.gallery_size)
    return arrays


def _direction(arrays: Any, name: Direction, protocol: Protocol) -> tuple[DirectionResult, NDArray[np.int64]]:
    """The result of a direction, and the labels of its queries."""
    ranks, positives, queries, optimistic, labels = (
        arrays[f"{name}_{what}"].astype(np.int64) for what in ("ranks", "positives", "queries", "optimistic", "labels")
    )
    offsets = np.concatenate([[0], np.cumsum(positives)])
    lengths = {len(positives), len(queries), len(optimistic), len(labels)}
    if len(ranks) != offsets[-1] or len(lengths) > 1 or (positives < 1).any():
        raise ValueError(f"the arrays of {name} don't fit each other")
    stored = PositiveRanks(ranks, offsets, int(arrays[f"{name}_gallery_size"]), queries, optimistic)
    return DirectionResult(stored, extra=protocol.metrics[name]), labels
