"""Which loss, what each ingredient of `flickr8k-best-small` brings, and how fast: everything in docs/study.md.

    python benchmarks/study.py --list
    python benchmarks/study.py --data flickr8k --output runs/study [--only NAME ...] [--seeds 0 1 2]

Losses and ingredients are compared on frozen encoders, whose features are made once, by the projections trained on
them: all with the same data, steps and seeds. A loss is tuned by eight trials with a seed of their own, over the
learning rate and its own setting, and then trained with the best of them for each seed. The other entries are whole
runs of `crosspair train`.
What is finished in OUTPUT is read, not made again, so the script can be stopped and started at any time.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from study_curves import compare_curves, whole_run
from study_heads import LITE2, SMALL, Heads, Training

TRIAL_SEED = 1000
RATES = (5e-4, 1e-3, 2e-3, 4e-3)


def _trials(*losses: dict[str, Any], rates: tuple[float, ...] = RATES) -> list[Training]:
    return [Training(loss, rate) for loss, rate in product(losses, rates)]


# As `flickr8k-best-small` weights CMPM and the hardest negatives.
_HARDEST = {"cmpm": {"weight": 0.1, "scale": 20}, "triplet": {"weight": 10, "margin": 0.1}}

# Eight trials each. The paper's CMPM has no temperature: all its trials go to the learning rate.
LOSSES = {
    "CMPM": _trials({"cmpm": 1}, rates=(2.5e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 4e-3, 8e-3)),
    "CMPM, learned scale": _trials(*({"cmpm": {"weight": 1, "scale": scale}} for scale in (10, 20))),
    "CMPC": _trials({"cmpc": 1}, {"cmpc": {"weight": 1, "label_smoothing": 0.1}}),
    "CMPM + CMPC": _trials({"cmpm": 1, "cmpc": 0.1}, {"cmpm": 1, "cmpc": 1}),
    "InfoNCE": _trials(*({"infonce": {"weight": 1, "temperature": start}} for start in (0.1, 0.05))),
    "SDM": _trials(*({"sdm": {"weight": 1, "temperature": fixed}} for fixed in (0.02, 0.05))),
    "triplet": _trials(*({"triplet": {"weight": 1, "margin": margin}} for margin in (0.1, 0.2))),
    "SigLIP": _trials(*({"siglip": {"weight": 1, "temperature": start}} for start in (0.1, 0.05))),
    "CMPM + triplet": _trials(_HARDEST, {**_HARDEST, "triplet": {"weight": 10, "margin": 0.2}}),
}
_SMALL = {"encoder": SMALL, "size": 300, "stages": 3, "hflip": False, "captions": 5, "epochs": 10}
BEST = Training(_HARDEST, heads=4, dim=2048, hidden=2048, dropout=0.5, **_SMALL)
ONE = replace(BEST, dim=512, heads=1)  # a quarter of the time; the other ingredients are taken from this one
INGREDIENTS = {
    "all of it": BEST,
    "one head": ONE,
    "one head, without lower stages": replace(ONE, stages=0),
    "one head, without the hardest negatives": replace(ONE, loss={"cmpm": {"weight": 1, "scale": 20}}),
    "one head, the paper's CMPM alone": replace(ONE, loss={"cmpm": 1}),
    "one head, without CMPM": replace(ONE, loss={"triplet": {"weight": 10, "margin": 0.1}}),
    "one head, without Lite1": replace(ONE, encoder=LITE2),
    "one head, without hidden layers": replace(ONE, hidden=0),
    "one head, without dropout": replace(ONE, dropout=0.0),
    "one head, one caption of a picture in a batch": replace(ONE, captions=1),
    "one head, pictures of 260 x 260": replace(ONE, size=260),
    "one head, with horizontal flips": replace(ONE, hflip=True),
}
_STAGE2 = {
    **{"epochs": 2, "batch_size": 128, "captions_per_image": 5, "epoch_covers": "images"},
    **{"freeze_image_encoder": "true", "learning_rate": 1e-4, "text_learning_rate": 2e-5},
    **{"schedule": "cosine", "warmup_steps": 20},
}
RUNS = {
    "flickr8k-best-small": [],
    "flickr8k-best-small, then MiniLM": [f"--stage2.{name}={value}" for name, value in _STAGE2.items()],
}
CURVES = "curves"

# On two cores, of which losses and ingredients keep one busy: for a loss or an ingredient with three seeds, for a run
# with one. Making the features of images and captions at first adds up to ten minutes.
MINUTES = {
    **dict.fromkeys(LOSSES, 6),
    **dict.fromkeys(("CMPC", "CMPM + CMPC"), 25),
    **dict.fromkeys(INGREDIENTS, 10),
    "all of it": 60,
    **dict(zip(RUNS, (12, 30), strict=True)),
    CURVES: 90,
}


@dataclass
class Study:
    """What is measured, with what."""

    data: Path
    output: Path
    seeds: list[int]
    heads: Heads
    backend: str

    def entry(self, name: str) -> str:
        """Measure an entry and return its row of the table."""
        if name == CURVES:
            return compare_curves(self.data, self.output, self.backend)
        if name in RUNS:
            runs = [whole_run(self.data, self.output, name, RUNS[name], seed, self.backend) for seed in self.seeds]
            return "\n".join(
                row(f"{name}: stage {stage}", [run[stage] for run in runs], "whole runs, weights of the best epoch")
                for stage in runs[0]
            )
        training = best_trial(self.heads, LOSSES[name]) if name in LOSSES else INGREDIENTS[name]
        results = [self.heads.measured(training, seed) for seed in self.seeds]
        note = f"learning rate {training.learning_rate:g}, {training.loss}"
        return row(name, results, note)


def best_trial(heads: Heads, trials: list[Training]) -> Training:
    """The one with the highest rsum on val."""
    return max(trials, key=lambda trial: heads.measured(trial, TRIAL_SEED)["rsum"])


def row(name: str, results: list[dict[str, Any]], note: str) -> str:
    """Mean and standard deviation over the seeds."""
    columns: list[Callable[[dict[str, Any]], float]] = [
        lambda result: result["image_to_text"]["R@1"],
        lambda result: result["text_to_image"]["R@1"],
        lambda result: result["rsum"],
    ]
    cells = []
    for column in columns:
        values = [column(result) for result in results]
        deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{deviation}")
    return f"| {name} | {' | '.join(cells)} | {note} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of all entries, and the minutes they take")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MINUTES), default=list(MINUTES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--feature-backend", default="auto", help="of the frozen image encoders, as in a recipe")
    options = parser.parse_args()
    if options.list:
        for name, minutes in MINUTES.items():
            print(f"{name:45} {minutes:4} min{' a seed' if name in RUNS else ''}")
        return
    if options.data is None or options.output is None:
        parser.error("give --data and --output, or --list")
    heads = Heads(options.data, options.output, options.feature_backend)
    study = Study(options.data, options.output, options.seeds, heads, options.feature_backend)
    print("| entry | R@1 image to text | R@1 text to image | rsum | setting |\n|---|---|---|---|---|", flush=True)
    for name in options.only:
        print(study.entry(name), flush=True)


if __name__ == "__main__":
    main()
