"""Logging of a run: metrics.jsonl, TensorBoard and the progress bar."""

import json
import math
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from crosspair.errors import UserError
from crosspair.storage.files import full_disk_is_an_error, write_text

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All rows of a run. A last line that a kill cut short is left out; any other that is no row is a UserError."""
    path = run / METRICS
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                row = json.loads(line)
                if not (isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("step")) is int):
                    raise ValueError("no row with a kind and a step")
                rows.append(row)
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {number} of {path} is damaged ({line[:40]!r}); remove that line") from error
    return rows


class RunLog:
    """Appends rows to RUN/metrics.jsonl and, as a recipe's `tensorboard` says, to RUN/tensorboard.

    step: how many steps the run has done, validated: whether the validation after them is done as well, if there is
    one. Rows that it had written beyond that, before an interruption, are dropped.
    """

    def __init__(
        self, run: Path, step: int = 0, *, validated: bool = True, tensorboard: Literal["auto", "on", "off"] = "auto"
    ) -> None:
        kept = [row for row in read_metrics(run) if _written_by(row, step, validated)] if step else []
        self._path = run / METRICS
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")
        writer = _summary_writer(tensorboard)
        self._board = writer(str(run / "tensorboard"), purge_step=step or None) if writer else None

    def write(self, row: dict[str, Any]) -> None:
        """A row of plain values with at least "kind" and "step"."""
        with full_disk_is_an_error(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._board is None:
            return
        prefix = row["kind"] + ("/" + row["weights"] if "weights" in row else "")
        for name, value in _scalars(row):
            self._board.add_scalar(f"{prefix}/{name}", value, row["step"])

    def write_histograms(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Histograms of weights by name and of their gradients, for TensorBoard alone; NaN and infinite ones aside."""
        if self._board is None:
            return
        for name, weight in weights.items():
            for what, values in (("weights", weight.detach()), ("gradients", weight.grad)):
                if values is not None and bool((finite := values.isfinite()).any()):
                    self._board.add_histogram(f"{what}/{name}", values[finite].float().cpu().numpy(), step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def check_tensorboard(setting: str, histograms: int = 0) -> None:
    """Raise UserError when TensorBoard is asked for, by `on` or by histograms for it, and not installed."""
    if _summary_writer(setting) is None and histograms:
        raise UserError(
            f"histograms is {histograms}, which TensorBoard shows, and its package is not installed; run: pip install "
            "'crosspair[tensorboard]', or set histograms to 0"
        )


def _summary_writer(setting: str) -> Any:
    """TensorBoard's writer, or None where it is not wanted or (`auto`) not installed."""
    if setting == "off":
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if setting == "auto":
            return None
        raise UserError(
            "tensorboard is on in the recipe, and the package is not installed; run: pip install "
            "'crosspair[tensorboard]', or set tensorboard to auto"
        ) from error
    return SummaryWriter


def _written_by(row: dict[str, Any], step: int, validated: bool) -> bool:
    """Whether a row was written when `step` steps were done: the row of training step n comes while n + 1 is done."""
    reached: int = row["step"]
    before = row["kind"] == "train" or (row["kind"] == "val" and not validated)
    return reached < step if before else reached <= step


def plain(values: dict[str, float]) -> dict[str, float | None]:
    """Values as JSON can hold them: NaN and infinite numbers become null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def speed_and_memory(pairs_per_second: float, device: torch.device) -> dict[str, float]:
    """Speed and memory for a training row."""
    return {"pairs_per_second": round(pairs_per_second, 1), "memory_mb": round(memory_mb(device), 1)}


def memory_mb(device: torch.device) -> float:
    """Largest memory use so far, in megabytes: of the device, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _scalars(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in {"step", "stage"}:
            yield prefix + name, value


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries' notices that a user can do nothing about off the screen."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        yield
