"""Which loss, and what each ingredient of `flickr8k-best-small` brings: the tables of docs/study.md.

    python benchmarks/study.py --list
    python benchmarks/study.py --data flickr8k --output runs/study [--only NAME ...] [--seeds 0 1 2]

Both encoders stay frozen here, their features are computed once, and the projections are trained on them. All entries
have the same data, steps and seeds. A loss is tuned by six trials with a seed of their own, over the learning rate and
its own setting, and then trained with the best of them for each seed.
Finished trainings in OUTPUT are read, not made again, so the script can be stopped and started at any time.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmpl.data.batching import Batch
from cmpl.data.dataset import Split, open_data
from cmpl.data.text import pad
from cmpl.evaluation.metrics import evaluate_retrieval
from cmpl.files import write_text
from cmpl.models.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from cmpl.models.dual_encoder import DualEncoder, create_model
from cmpl.models.projection import Projection
from cmpl.training.features import choose_runtime, picture_features
from cmpl.training.losses import MatchingLosses
from cmpl.training.recipe import LossConfig

LITE0, SMALL = "tf_efficientnet_lite0", "tf_efficientnet_lite1+tf_efficientnet_lite2"
TRIAL_SEED = 1000
RATES = (5e-4, 1e-3, 2e-3)


@dataclass(frozen=True)
class Training:
    """Projections trained on features of frozen encoders."""

    loss: dict[str, float] = field(default_factory=dict)  # fields of LossConfig that differ from none
    learning_rate: float = 1e-3
    encoder: str = LITE0
    hidden: int = 512
    dim: int = 512
    dropout: float = 0.3
    captions: int = 2
    mirror: bool = True
    weight_decay: float = 0.01
    epochs: int = 8
    batch_size: int = 128


def _trials(*settings: dict[str, float], rates: tuple[float, ...] = RATES) -> list[Training]:
    return [Training({"cmpm": 0, "cmpc": 0, **setting}, rate) for setting, rate in product(settings, rates)]


# Six trials each. The paper's CMPM has no temperature: all its trials go to the learning rate.
LOSSES = {
    "CMPM": _trials({"cmpm": 1}, rates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
    "CMPM, learned scale": _trials({"cmpm": 1, "cmpm_scale": 10}, {"cmpm": 1, "cmpm_scale": 20}),
    "CMPC": _trials({"cmpc": 1}, {"cmpc": 1, "label_smoothing": 0.1}),
    "CMPM + CMPC": _trials({"cmpm": 1, "cmpc": 0.1}, {"cmpm": 1, "cmpc": 1}),
    "InfoNCE": _trials({"infonce": 1, "infonce_temperature": 0.1}, {"infonce": 1, "infonce_temperature": 0.05}),
    "SDM": _trials({"sdm": 1, "sdm_temperature": 0.02}, {"sdm": 1, "sdm_temperature": 0.05}),
    "triplet": _trials({"triplet": 1, "triplet_margin": 0.1}, {"triplet": 1, "triplet_margin": 0.2}),
    "SigLIP": _trials({"siglip": 1, "siglip_temperature": 0.1}, {"siglip": 1, "siglip_temperature": 0.05}),
}
BEST = Training({"cmpm": 1, "cmpc": 0, "cmpm_scale": 20}, encoder=SMALL, hidden=1024, dropout=0.5)
INGREDIENTS = {
    "all of it": BEST,
    "one encoder: Lite2": replace(BEST, encoder="tf_efficientnet_lite2"),
    "one encoder: Lite0": replace(BEST, encoder=LITE0),
    "without the hidden layers": replace(BEST, hidden=0),
    "without dropout": replace(BEST, dropout=0.0),
    "the paper's CMPM, no scale": replace(BEST, loss={"cmpm": 1, "cmpc": 0}),
    "one caption of a picture in a batch": replace(BEST, captions=1),
    "without mirror images": replace(BEST, mirror=False),
}


@dataclass
class Features:
    """What the frozen encoders make of a split: images [n, views, f], captions [m, t], and each caption's picture."""

    images: Tensor
    captions: Tensor
    picture_of: Tensor


class Study:
    """The data, the features of each encoder (made once), and the finished trainings in a directory."""

    def __init__(self, data: Path, output: Path, runtime: str) -> None:
        self.data = open_data(data)
        self.runtime = runtime
        self.output = output
        self.features = cache(self._features)
        self.captions = cache(self._captions)

    def measured(self, training: Training, seed: int) -> dict[str, Any]:
        """The result of a training on val: read if it is there, else made now."""
        settings = {**asdict(training), "seed": seed}
        for path in self.output.glob("*.json"):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] == settings:
                return found
        train_features, val_features = self.features(training.encoder)
        start = time.perf_counter()
        result = {"settings": settings, **fit(training, train_features, val_features, seed)}
        result["seconds"] = round(time.perf_counter() - start, 1)
        self.output.mkdir(parents=True, exist_ok=True)
        write_text(self.output / f"{time.time_ns()}.json", json.dumps(result))
        return result

    def _features(self, encoder: str) -> tuple[Features, Features]:
        size = [240, 240] if encoder == SMALL else None
        model = _model(encoder, size)
        val = self.data.split("val")
        settings = {"setting": self.runtime, "precision": "bf16-mixed", "tell": print}
        autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
        runtime = choose_runtime(model, val, autocast=autocast, **settings)
        made = []
        for name in ("train", "val"):
            split = self.data.split(name)
            images = picture_features(model, split, runtime, mirror=name == "train")
            counts = torch.tensor([len(captions) for captions in split.captions])
            picture_of = torch.arange(len(split)).repeat_interleave(counts)
            made.append(Features(torch.from_numpy(np.array(images)), self.captions(name), picture_of))
        return made[0], made[1]

    def _captions(self, name: str) -> Tensor:
        """float32 [m, 384]: MiniLM's mean of every caption, kept in OUTPUT."""
        path = self.output / f"captions-{name}.npy"
        if not path.exists():
            self.output.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npy")
            np.save(partial, _encode_captions(_model(LITE0, None), self.data.split(name)).numpy())
            partial.replace(path)
        return torch.from_numpy(np.load(path, allow_pickle=False))


def _model(encoder: str, size: list[int] | None) -> DualEncoder:
    text = TextEncoderConfig("sentence-transformers/all-MiniLM-L6-v2", weights="package", max_words=40)
    model = create_model(ModelConfig(ImageEncoderConfig(encoder, weights="package", size=size), text), [])
    model.freeze_image_encoder()
    return model.eval()


@torch.no_grad()
def _encode_captions(model: DualEncoder, split: Split) -> Tensor:
    captions = [caption for row in split.captions for caption in row]
    rows = []
    with torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(captions), 512):
            tokens, lengths = pad([model.tokenize(caption) for caption in captions[start : start + 512]])
            rows.append(model.text_encoder(tokens, lengths).float())
    return torch.cat(rows)


def fit(training: Training, train: Features, val: Features, seed: int) -> dict[str, Any]:
    """Train both projections and the loss's own parameters, and evaluate the last weights on val."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    shape = {"hidden_features": training.hidden, "dropout": training.dropout}
    image_side = Projection(train.images.shape[-1], training.dim, **shape)
    text_side = Projection(train.captions.shape[-1], training.dim, **shape)
    count = len(train.images)
    losses = MatchingLosses(LossConfig(**training.loss), count, training.dim)  # type: ignore[arg-type]
    model = nn.ModuleList([image_side, text_side, losses])
    weights = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": weights, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=training.learning_rate)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(train.picture_of).cumsum(0)])
    batches = count // training.batch_size
    steps = training.epochs * batches
    for step in range(steps):
        if step % batches == 0:
            order = torch.from_numpy(random.permutation(count))
        start = step % batches * training.batch_size
        rows = order[start : start + training.batch_size]
        chosen = [
            int(first[row]) + random.permutation(int(first[row + 1] - first[row]))[: training.captions] for row in rows
        ]
        of = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(each) for each in chosen]))
        view = torch.from_numpy(random.integers(0, 2, len(rows)) if training.mirror else np.zeros(len(rows), int))
        share = min(1.0, (step + 1) / 30) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in adam.param_groups:
            group["lr"] = training.learning_rate * share
        images = image_side(train.images[rows, view])
        texts = text_side(train.captions[torch.from_numpy(np.concatenate(chosen))])
        unread = torch.zeros(len(of), 1, dtype=torch.int64)
        batch = Batch(unread, unread[:, 0], rows, rows[of], rows[of], of)
        loss, _ = losses(images, texts, batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.eval()
    with torch.no_grad():
        images, texts = image_side(val.images[:, 0]), text_side(val.captions)
    return evaluate_retrieval(images, texts, torch.arange(len(images)), val.picture_of).to_dict()


def best_trial(study: Study, trials: list[Training]) -> Training:
    """The one with the highest rsum on val."""
    return max(trials, key=lambda trial: study.measured(trial, TRIAL_SEED)["rsum"])


def row(name: str, results: list[dict[str, Any]], note: str) -> str:
    columns = [
        [result["image_to_text"]["R@1"] for result in results],
        [result["text_to_image"]["R@1"] for result in results],
        [result["rsum"] for result in results],
    ]
    cells = [
        f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"
        for values in columns
    ]
    return f"| {name} | {' | '.join(cells)} | {note} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*LOSSES, *INGREDIENTS]
    parser.add_argument("--list", action="store_true", help="print the names of all entries")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--feature_runtime", default="auto", help="of the frozen image encoders, as in a recipe")
    options = parser.parse_args()
    if options.list:
        print("\n".join(names))
        return
    if options.data is None or options.output is None:
        parser.error("give --data and --output, or --list")
    study = Study(options.data, options.output, options.feature_runtime)
    print("| entry | R@1 image to text | R@1 text to image | rsum | setting |\n|---|---|---|---|---|", flush=True)
    for name in options.only:
        training = best_trial(study, LOSSES[name]) if name in LOSSES else INGREDIENTS[name]
        results = [study.measured(training, seed) for seed in options.seeds]
        own = {key: value for key, value in training.loss.items() if key not in {"cmpm", "cmpc"} or 0 < value < 1}
        note = ", ".join([f"learning rate {training.learning_rate:g}", *(f"{key} {own[key]:g}" for key in own)])
        print(row(name, results, note), flush=True)


if __name__ == "__main__":
    main()
