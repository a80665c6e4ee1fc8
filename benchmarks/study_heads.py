"""Projections trained on features of frozen encoders: what `study.py` compares losses and ingredients by.

Both encoders' features are made once; then a training takes seconds to minutes. Where images are flipped at random,
so are the few whose captions say left or right.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosspair.data.batching import Batch
from crosspair.data.dataset import PreparedSplit, open_data
from crosspair.data.tokens import pad
from crosspair.encode.backends import choose_backend
from crosspair.encode.features import image_features, kept_agreement
from crosspair.encode.model import DualEncoder, create_model
from crosspair.evaluation.metrics import evaluate_retrieval
from crosspair.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig
from crosspair.models.projection import create_projection
from crosspair.storage.files import write_text
from crosspair.training.losses import MatchingLosses

LITE0, LITE2 = "tf_efficientnet_lite0", "tf_efficientnet_lite2"
SMALL = "tf_efficientnet_lite1+tf_efficientnet_lite2"


@dataclass(frozen=True)
class Training:
    """Projections trained on features of frozen encoders."""

    loss: dict[str, Any] = field(default_factory=dict)  # as a recipe has it
    learning_rate: float = 1e-3
    encoder: str = LITE0
    size: int | None = None  # of the images; None takes the encoder's own
    hidden: int = 512
    dim: int = 512
    dropout: float = 0.3
    captions: int = 2
    hflip: bool = True
    weight_decay: float = 0.01
    epochs: int = 8
    batch_size: int = 128
    heads: int = 1
    stages: int = 0


@dataclass
class Features:
    """What the frozen encoders make of a split: images [n, views, f], captions [m, t], and each caption's image.

    The second view of an image, if any, is the flipped one.
    """

    images: Tensor
    captions: Tensor
    image_of: Tensor


class Heads:
    """The data, the features of each encoder (made once), and the finished trainings in a directory."""

    def __init__(self, data: Path, output: Path, backend: str) -> None:
        self.data = open_data(data)
        self.backend = backend
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
        train_features, val_features = self.features(training.encoder, training.size, training.stages, training.hflip)
        start = time.perf_counter()
        result = {"settings": settings, **fit(training, train_features, val_features, seed)}
        result["seconds"] = round(time.perf_counter() - start, 1)
        self.output.mkdir(parents=True, exist_ok=True)
        write_text(self.output / f"{time.time_ns()}.json", json.dumps(result))
        return result

    def _features(self, encoder: str, size: int | None, stages: int, hflip: bool) -> tuple[Features, Features]:
        model = _model(encoder, size, stages)
        settings = {"precision": "bf16-mixed", "tell": print}
        autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
        backend = choose_backend(
            model, self.backend, kept_agreement(model, self.data.split("val")), autocast=autocast, **settings
        )
        made = []
        for name in ("train", "val"):
            split = self.data.split(name)
            images = image_features(model, split, backend, hflip=hflip and name == "train")
            counts = torch.tensor([len(captions) for captions in split.captions])
            image_of = torch.arange(len(split)).repeat_interleave(counts)
            made.append(Features(torch.from_numpy(np.array(images)), self.captions(name), image_of))
        return made[0], made[1]

    def _captions(self, name: str) -> Tensor:
        """float32 [m, 384]: MiniLM's mean of every caption, kept in OUTPUT."""
        path = self.output / f"captions-{name}.npy"
        if not path.exists():
            self.output.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npy")
            np.save(partial, _encode_captions(_model(LITE0), self.data.split(name)).numpy())
            partial.replace(path)
        return torch.from_numpy(np.load(path, allow_pickle=False))


def _model(encoder: str, size: int | None = None, stages: int = 0) -> DualEncoder:
    square = None if size is None else [size, size]
    image = ImageEncoderConfig(encoder, weights="package", size=square, pooled_stages=stages)
    text = TextEncoderConfig("sentence-transformers/all-MiniLM-L6-v2", weights="package", max_words=40)
    model = create_model(ModelConfig(image, text), [])
    model.freeze_image_encoder()
    return model.eval()


@torch.no_grad()
def _encode_captions(model: DualEncoder, split: PreparedSplit) -> Tensor:
    captions = [caption for row in split.captions for caption in row]
    rows = []
    with torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(captions), 512):
            tokens, lengths = pad([model.tokenize(caption) for caption in captions[start : start + 512]])
            rows.append(model.text_encoder(tokens, lengths).float())
    return torch.cat(rows)


def fit(training: Training, train: Features, val: Features, seed: int) -> dict[str, Any]:
    """Train both projections and the loss's own parameters, and evaluate the last weights.

    On val; `train_rsum` is of as many images of train, for how closely those are fitted.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    layers = 2 if training.hidden else 1
    shape = ProjectionConfig(
        training.dim, layers, heads=training.heads, hidden_dim=training.hidden, dropout=training.dropout
    )
    image_side = create_projection(train.images.shape[-1], shape, "image")
    text_side = create_projection(train.captions.shape[-1], shape, "text")
    count = len(train.images)
    losses = MatchingLosses(training.loss, count, training.dim, training.heads)
    model = nn.ModuleList([image_side, text_side, losses])
    weights = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": weights, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=training.learning_rate)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(train.image_of).cumsum(0)])
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
        view = torch.from_numpy(random.integers(0, 2, len(rows)) if training.hflip else np.zeros(len(rows), int))
        share = min(1.0, (step + 1) / 30) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in adam.param_groups:
            group["lr"] = training.learning_rate * share
        images = image_side(train.images[rows, view])
        texts = text_side(train.captions[torch.from_numpy(np.concatenate(chosen))])
        unread = torch.zeros(len(of), 1, dtype=torch.int64)
        batch = Batch(unread, unread[:, 0], rows, rows[of], of)
        loss, _ = losses(images, texts, batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.eval()

    @torch.no_grad()
    def recall(features: Features, num_images: int) -> dict[str, Any]:
        read = features.image_of < num_images
        images, texts = image_side(features.images[:num_images, 0]), text_side(features.captions[read])
        return evaluate_retrieval(images, texts, torch.arange(num_images), features.image_of[read]).to_dict()

    return {**recall(val, len(val.images)), "train_rsum": recall(train, len(val.images))["rsum"]}
