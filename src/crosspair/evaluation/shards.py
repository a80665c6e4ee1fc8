"""Sharded ranking: each part counts some of the scores by itself, on any machine, and their sums are the ranks.

A part is an .npz file with `header` (JSON: what was counted of what) and the counts so far, by label: `image_to_text`
and `text_to_image` [pairs of a query and its positive], what reaches the positive, and `above_image_to_text` and
`above_text_to_image` [queries], what scores above the best one. It is written every few minutes, so that a part
that was stopped goes on where it was. Counts are whole numbers: merged, they are those of one run.
"""

import hashlib
import json
import re
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crosspair.errors import UserError
from crosspair.evaluation.cost import announced
from crosspair.evaluation.counting import Counting
from crosspair.storage.files import whole_file

FORMAT = 2
_SAVE_SECONDS = 300.0


@dataclass(frozen=True)
class Part:
    """The counts of a shard. shard: number, of how many. done, blocks: pairs of blocks counted, and to be counted.

    counts: by name, those of `Counting.counts`.
    facts: what all parts of a ranking share, such as the checksum of the positives' scores: another model, another
    order or a processor that rounds otherwise gives another one.
    """

    shard: tuple[int, int]
    done: int
    blocks: int
    facts: dict[str, Any]
    counts: dict[str, NDArray[np.int64]]

    @property
    def complete(self) -> bool:
        return self.done == self.blocks


def parse_shard(text: str) -> tuple[int, int]:
    """ "3/8" is the third of eight."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"shard is {text!r}; expected a number and how many there are, as 1/8 to 8/8")
    return int(found[1]), int(found[2])


def count_shard(counting: Counting, shard: tuple[int, int], path: Path, facts: dict[str, Any]) -> Part:
    """Count a shard into a file, from where the file is if it is of the same shard and embeddings.

    Raises UserError when the file holds something else.
    """
    pairs = counting.pairs(shard)
    before = read_part(path) if path.exists() else None
    if before is not None and (before.shard != shard or before.blocks != len(pairs)):
        raise UserError(f"{path} is shard {before.shard[0]}/{before.shard[1]} of something else; name another --part")
    steps = announced(counting, pairs, before.done if before else 0)
    counting.read_positives()
    facts = {**facts, "scores_checksum": _checksum(counting.images.scores)}
    part = Part(shard, 0, len(pairs), facts, {name: counts.numpy() for name, counts in counting.counts.items()})
    if before is not None:
        _check_same(before, part, path, "this shard")
        _add(counting, before)
        part = replace(part, done=before.done)
    saved = time.monotonic()
    for pair in steps:
        counting.count(pair)
        part = replace(part, done=part.done + 1)
        if time.monotonic() - saved > _SAVE_SECONDS and not part.complete:
            _write(path, part)
            saved = time.monotonic()
    _write(path, part)
    return part


def merge_parts(counting: Counting, paths: Sequence[Path], facts: dict[str, Any]) -> dict[str, Any]:
    """Add up all parts of a ranking into the ranks of `counting`; the facts that they share.

    Raises UserError unless each of them is there once, whole, and of the same embeddings.
    """
    parts = [read_part(path) for path in paths]
    first, of = parts[0], parts[0].shard[1]
    for path, part in zip(paths, parts, strict=True):
        _check_same(part, first, path, str(paths[0]))
        differing = [name for name, value in facts.items() if part.facts.get(name) != value]
        if differing:
            what = ", ".join(name.removesuffix("_checksum") for name in differing)
            raise UserError(
                f"{path} was counted with other embeddings or options (its {what}); merge it with those of its --shard"
            )
        if not part.complete:
            raise UserError(f"{path} is not finished ({part.done} of {part.blocks} blocks); run its shard again")
    numbers = sorted(part.shard[0] for part in parts)
    if [part.shard[1] for part in parts] != [of] * len(parts) or numbers != list(range(1, of + 1)):
        found = ", ".join(f"{part.shard[0]}/{part.shard[1]}" for part in parts)
        raise UserError(f"found the parts {found}; expected each of 1/{of} to {of}/{of} once")
    for part in parts:
        _add(counting, part)
    return first.facts


def read_part(path: Path) -> Part:
    """Raises UserError for a file that is no part."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            if header["format"] != FORMAT:
                raise UserError(f"{path} has format {header['format']}, this crosspair reads format {FORMAT}")
            number, of = header["shard"]
            counts = {name: arrays[name].astype(np.int64) for name in arrays.files if name != "header"}
            return Part((number, of), header["done"], header["blocks"], header["facts"], counts)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no part that crosspair evaluate --shard wrote ({error!r:.80})") from error


def _add(counting: Counting, part: Part) -> None:
    for name, counts in counting.counts.items():
        counts += torch.from_numpy(part.counts[name])


def _check_same(one: Part, other: Part, path: Path, than: str) -> None:
    if one.facts != other.facts or _sizes(one) != _sizes(other):
        names = [name for name in other.facts if one.facts.get(name) != other.facts[name]]
        what = ", ".join(names) or "sizes"
        raise UserError(
            f"{path} differs from {than} in {what}; expected parts of the same embeddings and protocol, counted on "
            "processors of one kind"
        )


def _write(path: Path, part: Part) -> None:
    header = {"format": FORMAT, "shard": part.shard, "done": part.done, "blocks": part.blocks, "facts": part.facts}
    with whole_file(path) as file:
        np.savez(
            file,
            allow_pickle=False,
            header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            **part.counts,
        )


def _sizes(part: Part) -> dict[str, int]:
    return {name: len(counts) for name, counts in part.counts.items()}


def _checksum(scores: torch.Tensor) -> str:
    return hashlib.sha256(scores.numpy().tobytes()).hexdigest()
