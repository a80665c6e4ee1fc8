"""Thirty training steps of the original's graph, replayed through the training loop's own step.

replay(read_recording(folder, "resnet_v1_tiny", "frozen"), torch.float64)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from crosspair.data.batching import Batch
from crosspair.data.tokens import Vocabulary
from crosspair.data.transforms import ImageInput
from crosspair.encode.model import DualEncoder
from crosspair.models.projection import Projection
from crosspair.models.slim.encoders import slim_input
from crosspair.models.slim.mobilenet import slim_mobilenet_v1
from crosspair.models.slim.resnet import SlimResNet
from crosspair.models.slim.variables import load_tf_variables, state_from_tf_variables
from crosspair.original.verify.reference import Comparison
from crosspair.original.verify.towers import TINY_BLOCKS
from crosspair.training.distributed import Processes
from crosspair.training.ema import WeightEMA
from crosspair.training.losses import MatchingLosses
from crosspair.training.optimizer import StageOptimizer
from crosspair.training.recipe import Recipe
from crosspair.training.recipe_files import load_recipe
from crosspair.training.step import TrainingStep

STEPS = 30
# Terms of a step by their names in metrics.jsonl, and the original's names.
_TERMS = {
    "cmpm_image_to_text": "i2t",
    "cmpm_text_to_image": "t2i",
    "cmpc_image_to_text": "ipt",
    "cmpc_text_to_image": "tpi",
    "cmpm": "cmpm",
    "cmpc": "cmpc",
    "regularization": "regularization",
}
_WORDS, _WORD_DIM, _DIM, _CLASSES = 48, 16, 32, 12
_WEIGHT_TOLERANCE = 2e-7  # beside 1e-7 of the value


@dataclass(frozen=True)
class Recording:
    """A recording of the original's graph: initial variables, batches and results.

    tower: mobilenet_v1_025 or resnet_v1_tiny. frozen: whether its image tower was, as in the original's first stage.
    batches: images, words and labels of each step. initial: variables before the first step.
    values: losses of each step (`loss_cmpm_f64` [30]), and variables (`after10:NAME`) and their EMA (`ema30:NAME`) on
    the way; those still equal to the initial ones are in the list `after10_same_as_initial`.
    """

    tower: str
    frozen: bool
    batches: Mapping[str, np.ndarray]
    initial: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]

    def variables(self, moment: str) -> dict[str, np.ndarray]:
        """All recorded variables at a moment such as `after10` or `ema30`, none if it was not recorded."""
        prefix = f"{moment}:"
        changed = {key.removeprefix(prefix): self.values[key] for key in self.values if key.startswith(prefix)}
        same = self.values.get(f"{moment}_same_as_initial", np.array([], dtype=str))
        return {**{str(name): self.initial[str(name)] for name in same}, **changed}


@dataclass
class Replayed:
    """Largest differences between a recording and the same run through our step.

    losses: over all terms, of each step. totals: of the whole loss, of each step, to the original's run in the same
    precision. weights: by moment, over all variables: |difference| / (1 + |value| / 2), so that 2e-7 allows 2e-7 and
    1e-7 of the value.
    """

    losses: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)


def read_recording(folder: Traversable, tower: str, variant: str) -> Recording:
    """A recording of a folder of reference data; variant: trainable or frozen."""

    def load(name: str) -> dict[str, np.ndarray]:
        with (folder / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    initial = {name: value.astype(np.float64) for name, value in load(f"{tower}_initial").items()}
    return Recording(tower, variant == "frozen", load("batches"), initial, load(f"{tower}_{variant}"))


def packaged_recording() -> Recording:
    """The recording that ships with the package."""
    return read_recording(files("crosspair.original.verify") / "fixtures" / "training", "resnet_v1_tiny", "frozen")


def check_trajectory() -> Iterator[Comparison]:
    """Losses in nats; weights, their EMA and batch-norm statistics with 1e-7 of their value allowed on top."""
    recording = packaged_recording()
    found = replay(recording, torch.float64)
    yield Comparison(f"training, losses of {STEPS} steps, float64", max(found.losses), 1e-9)
    names = {"after": "weights and statistics", "ema": "EMA"}
    for moment, difference in found.weights.items():
        kind = moment.rstrip("0123456789")
        step = moment.removeprefix(kind)
        yield Comparison(f"training, {names[kind]} after step {step}, float64", difference, _WEIGHT_TOLERANCE)
    single = replay(recording, torch.float32)
    yield Comparison(f"training, losses of {STEPS} steps, float32", max(single.totals), 5e-5)


def replay(recording: Recording, dtype: torch.dtype) -> Replayed:
    """Run the recorded steps in float32 or float64 and compare; weights at every recorded moment, in float64 only."""
    run = _Run(recording, dtype)
    suffix = "_f64" if dtype == torch.float64 else ""
    found = Replayed()
    for number in range(STEPS):
        seen = run.step(number)
        seen["total"] = seen["loss"] + seen["regularization"]
        expected = {ours: recording.values[f"loss_{theirs}{suffix}"][number] for ours, theirs in _TERMS.items()}
        found.losses.append(max(abs(seen[name] - value) for name, value in expected.items()))
        found.totals.append(abs(seen["total"] - recording.values[f"loss_total{suffix}"][number]))
        if dtype == torch.float64:
            for kind in ("after", "ema"):
                variables = recording.variables(f"{kind}{number + 1}")
                if variables:
                    found.weights[f"{kind}{number + 1}"] = run.difference(variables, ema=kind == "ema")
    return found


class _Run:
    """Our model and training step, set up as the recorded graph was."""

    def __init__(self, recording: Recording, dtype: torch.dtype) -> None:
        self.recording = recording
        self.mobilenet = recording.tower.startswith("mobilenet")
        recipe = _recipe(self.mobilenet)
        self.model = self._model(recipe).to(dtype)
        if recording.frozen:
            self.model.freeze_image_encoder(freeze_bn_stats=recipe.stage1.bn_stats_frozen)
        self.losses = MatchingLosses(recipe.loss, _CLASSES, _DIM).to(dtype)
        with torch.no_grad():
            self.losses["cmpc"].get_parameter("weight").copy_(torch.from_numpy(recording.initial["Wfc"]))
        processes = Processes(Fabric(accelerator="cpu", devices=1))
        ema = WeightEMA(self.model, recipe.ema.decay, leave_out=("text_encoder.",))
        optimizer = StageOptimizer(self.model, self.losses, recipe.optimizer, recipe.stage2, STEPS)
        self.training = TrainingStep(
            processes,
            processes.fabric.setup_module(self.model),
            self.losses,
            optimizer,
            ema,
            recipe.ema.before_update,
        )
        self.model.train()

    def _model(self, recipe: Recipe) -> DualEncoder:
        model = DualEncoder(recipe.model, Vocabulary([f"word{number}" for number in range(_WORDS)]))
        model.image_encoder = slim_mobilenet_v1(0.25) if self.mobilenet else SlimResNet(TINY_BLOCKS)
        features: int = model.image_encoder.num_features
        norm = recipe.model.projection
        model.image_projection = Projection(features, _DIM, eps=norm.norm_eps, momentum=norm.norm_momentum)
        model.image_input = _Float32Input(**vars(slim_input(recipe.model.image.name)))
        self.parts: dict[str, tuple[str, nn.Module]] = {
            "image_encoder": ("MobilenetV1" if self.mobilenet else self.recording.tower, model.image_encoder),
            "image_projection": ("joint_embedding/image_joint_embedding", model.image_projection),
            "text_projection": ("joint_embedding/text_joint_embedding", model.text_projection),
            "text_encoder": ("BiLSTM", model.text_encoder),
        }
        for scope, module in self.parts.values():
            load_tf_variables(module.double(), self.recording.initial, scope)
        return model

    def step(self, number: int) -> dict[str, float]:
        """Train on a recorded batch: the step's terms."""
        batches = self.recording.batches
        labels = torch.from_numpy(batches["labels"][number])
        batch = Batch(
            tokens=torch.from_numpy(batches["input_ids"][number, :, : batches["steps_in_batch"][number]]),
            lengths=torch.from_numpy(batches["lengths"][number]),
            image_labels=labels,
            text_labels=labels,
            image_rows=torch.arange(len(labels)),
            images=torch.from_numpy(batches["images_uint8"][number]).permute(0, 3, 1, 2),
        )
        return {name: float(value) for name, value in self.training(batch, number, observe=True).items()}

    def difference(self, variables: Mapping[str, np.ndarray], *, ema: bool) -> float:
        """Differences of our weights or their EMA from recorded variables; the original's EMA has no text encoder."""
        present = dict(self.model.state_dict())
        if ema and self.training.ema is not None:
            present |= self.training.ema.averages
        expected: dict[str, Tensor] = {}
        for part, (scope, module) in self.parts.items():
            if not (ema and part == "text_encoder"):
                state = state_from_tf_variables(module, variables, scope)
                expected |= {f"{part}.{name}": value for name, value in state.items()}
        if not ema:
            present["label weights"] = self.losses["cmpc"].state_dict()["weight"]
            expected["label weights"] = torch.tensor(variables["Wfc"], dtype=torch.float64)
        return max(
            float(((present[name] - value).abs() / (1 + value.abs() / 2)).max()) for name, value in expected.items()
        )


class _Float32Input(ImageInput):
    """Pixels as the recorded runs computed them: in float32 whatever the precision of the model."""

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        values = images.float()
        if self.mean[0] == self.std[0]:  # MobileNet's -1..1
            return ((values * (1 / 255) - 0.5) * 2).to(dtype)
        return (values - 255 * torch.tensor(self.mean)[:, None, None]).to(dtype)


def _recipe(mobilenet: bool) -> Recipe:
    """The built-in recipe of the original, with the sizes and settings of the recording."""
    recipe = load_recipe(
        "original/cuhk-pedes-mobilenet-cmpm-cmpc" if mobilenet else "original/flickr30k-resnet152-cmpm-cmpc"
    )
    recipe.loss["cmpc"]["spare_classes"] = 0  # the recorded classifier has its labels' classes alone
    recipe.stage1.freeze_bn_stats = False  # MobileNet's recipe leaves the first stage out
    recipe.stage2.learning_rate = 2e-4
    model = recipe.model
    # The tower is put in place of this one afterwards.
    model.image.name, model.image.weights = ("slim_mobilenet_v1" if mobilenet else "slim_resnet_v1_50"), "none"
    model.text.word_dim = model.text.hidden_dim = _WORD_DIM
    model.text.dropout = model.image.feature_dropout = 0.0
    model.projection.dim = _DIM
    # The recorded decays are float32 numbers.
    model.projection.norm_momentum = 1 - float(np.float32(1 - model.projection.norm_momentum))
    return recipe
