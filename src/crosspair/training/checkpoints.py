"""Checkpoints to resume from: tensors as safetensors, the rest as JSON, written whole or not at all.

checkpoints/step-00001200/{model,losses,ema,optimizer,random}.safetensors and state.json
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crosspair.errors import UserError
from crosspair.storage.files import whole_directory

KEPT = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Named groups of tensors, and a state of plain JSON values."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write `directory`/step-N (N: state["step"]) and remove all but it and the newest KEPT - 1 before it; its path.

    One of a later step is damaged, or the run would have gone on from it: it must not outlast those that are whole.
    """
    from safetensors.torch import save_file

    written = directory / f"step-{checkpoint.state['step']:08d}"
    with whole_directory(written) as temporary:
        sums = {}
        for group, tensors in checkpoint.tensors.items():
            path = temporary / f"{group}.safetensors"
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)
            sums[group] = _checksum(path)
        text = json.dumps({**checkpoint.state, "sha256": sums}, indent=2)
        (temporary / "state.json").write_text(text, encoding="utf-8")
    found = _newest_first(directory)
    at = found.index(written)
    for other in found[:at] + found[at + KEPT :]:
        shutil.rmtree(other)
    return written


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None when there is none at all.

    Raises UserError when there are checkpoints and every one of them is damaged.
    """
    found = _newest_first(directory)
    for path in found:
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path, error)
    if found:
        raise UserError(f"all {len(found)} checkpoints in {directory} are damaged; start again with another --output")
    return None


def _load(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors = {}
    for group, expected in state.pop("sha256").items():
        file = path / f"{group}.safetensors"
        if _checksum(file) != expected:
            raise ValueError(f"{file.name} has another checksum than when it was written")
        tensors[group] = load_file(file)
    return Checkpoint(tensors, state)


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*"), reverse=True) if directory.is_dir() else []


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
