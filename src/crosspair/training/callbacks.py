"""Callbacks of a training run, its progress, and its result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from crosspair.errors import UserError
from crosspair.training.log import read_metrics

EVENTS = ("on_step", "on_validation", "on_checkpoint", "on_end")


@dataclass
class Progress:
    """The position of a run in its stages, epochs and batches, which checkpoints keep."""

    step: int = 0
    """Training steps that are done, of all stages together."""
    stage: int = 1
    """Number of the stage that is under way, from 1."""
    epoch: int = 0
    """Epochs of this stage that are done, their validation and checkpoint included."""
    batch: int = 0
    """Batches of the epoch under way that are done."""
    best: dict[str, Any] = field(default_factory=dict)
    """The validation row of the best model so far, by rsum; without validation what the newest one is (stage, epoch,
    step, weights). Empty before the first epoch's end."""


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run."""

    run: Path
    """Its directory."""
    best: dict[str, Any]
    """The validation row of the best model, as `history` has it: stage, epoch, step, weights (raw or ema),
    image_to_text and text_to_image (R@1, R@5, R@10 and mAP in 0..100, median_rank, mean_rank from 1), rsum.
    Without validation stage, epoch, step and weights of the last model alone."""

    @property
    def model_path(self) -> Path:
        """The directory of the best model, for `DualEncoder.from_pretrained`."""
        return self.run / "model"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of RUN/metrics.jsonl, in the order in which they were written: kinds start, train, val and end."""
        return read_metrics(self.run)

    @classmethod
    def read(cls, run: str | Path) -> "RunResult":
        """The result of a run on disk. Raises UserError when it has neither a validation nor an end yet."""
        history = read_metrics(Path(run))
        rows = [row for row in history if row["kind"] == "val"]
        if not rows and history and history[-1]["kind"] == "end":
            return cls(Path(run), {name: value for name, value in history[-1].items() if name != "kind"})
        if not rows:
            raise UserError(f"{run} has no validated model; expected a training run, name its directory RUN")
        best = max(rows, key=lambda row: row["rsum"])
        return cls(Path(run), best)


class Callback:
    """Called while a run trains, on the first process alone. Override what is needed, or hand in functions:

        crosspair.Callback(on_validation=lambda progress, rows: print(rows[-1]["rsum"]))

    What a callback raises ends the run, which can be resumed from its last checkpoint.
    """

    def __init__(self, **functions: Callable[..., object]) -> None:
        """functions: by the names of the methods below, in place of them. Raises TypeError for another name."""
        for name, function in functions.items():
            if name not in EVENTS:
                raise TypeError(f"found the event {name!r}; expected one of {', '.join(EVENTS)}")
            setattr(self, name, function)

    def on_step(self, progress: Progress, metrics: Mapping[str, Tensor]) -> None:
        """After a training step. metrics: detached scalars on the device; reading one waits for it.

        They are the loss and its terms, and every `log_every` steps all that metrics.jsonl has.
        """

    def on_validation(self, progress: Progress, rows: Sequence[Mapping[str, Any]]) -> None:
        """After an epoch's validation. rows: of metrics.jsonl, of raw weights and, with an EMA, of its weights."""

    def on_checkpoint(self, progress: Progress, path: Path) -> None:
        """After a checkpoint was written to the directory `path`."""

    def on_end(self, progress: Progress, result: RunResult) -> None:
        """After the last stage."""
