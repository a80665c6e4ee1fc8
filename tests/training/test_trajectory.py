"""Thirty training steps of the original graph, against the loop's own step (see tests/oracle/README.md)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cmpl.data.batching import Batch
from cmpl.data.text import Vocabulary
from cmpl.legacy.slim_mobilenet import slim_mobilenet_v1
from cmpl.legacy.slim_resnet import SlimResNet, Unit
from cmpl.legacy.variables import load_tf_variables, state_from_tf_variables
from cmpl.models.dual_encoder import DualEncoder
from cmpl.models.projection import Projection
from cmpl.training.averages import WeightAverages
from cmpl.training.optimizer import ScheduledAdam
from cmpl.training.recipe import Recipe, load_recipe
from cmpl.training.step import MatchingLosses, TrainingStep

TERMS = {
    "cmpm_image_to_text": "i2t",
    "cmpm_text_to_image": "t2i",
    "cmpc_image_to_text": "ipt",
    "cmpc_text_to_image": "tpi",
    "cmpm": "cmpm",
    "cmpc": "cmpc",
    "regularization": "regularization",
}
TINY_BLOCKS = [[Unit(d, b, 1), Unit(d, b, s)] for d, b, s in [(32, 8, 2), (48, 12, 2), (64, 16, 2), (96, 24, 1)]]


@dataclass
class Normalized:
    """The towers' inputs as the original computed them, in float32 whatever the model's precision."""

    tower: str

    def normalize(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        pictures = pictures.float()
        if self.tower.startswith("mobilenet"):
            return ((pictures * (1 / 255) - 0.5) * 2).to(dtype)
        return (pictures - torch.tensor([123.68, 116.78, 103.94])[:, None, None]).to(dtype)


class Trajectory:
    """The recorded run of one tower and the same run through our step."""

    def __init__(self, folder: Path, tower: str, variant: str, dtype: torch.dtype) -> None:
        self.tower = tower
        self.expected = np.load(folder / f"{tower}_{variant}.npz")
        self.batches = np.load(folder / "batches.npz")
        initial = np.load(folder / f"{tower}_initial.npz")
        self.initial = {name: initial[name].astype(np.float64) for name in initial}
        mobilenet = tower.startswith("mobilenet")
        name = "cuhk-pedes-mobilenet-cmpm-cmpc" if mobilenet else "flickr30k-resnet152-cmpm-cmpc"
        recipe = load_recipe(f"original/{name}")
        stage = recipe.stage2
        stage.learning_rate = 2e-4
        # The recorded decays are float32 numbers.
        recipe.model.projection.norm_momentum = 1 - float(np.float32(1 - recipe.model.projection.norm_momentum))
        self.model = self._model(recipe, mobilenet).to(dtype)
        if variant == "frozen":
            self.model.freeze_image_encoder(
                move_batch_norm=load_recipe("original/coco-resnet152-cmpm").stage1.move_batch_norm
            )
        self.losses = MatchingLosses(recipe.loss, num_classes=12, embedding_dim=32).to(dtype)
        with torch.no_grad():
            self.losses.cmpc.weight.copy_(torch.from_numpy(self.initial["Wfc"]))
        fabric = Fabric(accelerator="cpu", devices=1)
        wrapped = fabric.setup_module(self.model)
        averages = WeightAverages(self.model, recipe.averages.decay, leave_out=("text_encoder.",))
        optimizer = ScheduledAdam(self.model, self.losses, recipe.optimizer, stage, steps=30)
        self.training = TrainingStep(fabric, wrapped, self.losses, optimizer, averages, recipe.averages.before_update)
        self.model.train()

    def _model(self, recipe: Recipe, mobilenet: bool) -> DualEncoder:
        config = recipe.model
        config.image.name, config.image.weights = "slim_mobilenet_v1", "none"
        config.text.word_dim = config.text.hidden_dim = 16
        config.text.dropout = config.image.feature_dropout = 0.0
        config.projection.dim = 32
        model = DualEncoder(config, Vocabulary([f"word{number}" for number in range(48)]))
        model.image_encoder = slim_mobilenet_v1(0.25) if mobilenet else SlimResNet(TINY_BLOCKS)
        norm = {"eps": config.projection.norm_eps, "momentum": config.projection.norm_momentum}
        model.image_projection = Projection(model.image_encoder.num_features, 32, **norm)
        model.picture_input = Normalized(self.tower)
        self.parts = {
            "image_encoder": ("MobilenetV1" if mobilenet else "resnet_v1_tiny", model.image_encoder),
            "image_projection": ("joint_embedding/image_joint_embedding", model.image_projection),
            "text_projection": ("joint_embedding/text_joint_embedding", model.text_projection),
            "text_encoder": ("BiLSTM", model.text_encoder),
        }
        for scope, module in self.parts.values():
            load_tf_variables(module.double(), self.initial, scope)
        return model

    def step(self, number: int) -> dict[str, float]:
        columns = self.batches["steps_in_batch"][number]
        labels = torch.from_numpy(self.batches["labels"][number])
        batch = Batch(
            tokens=torch.from_numpy(self.batches["input_ids"][number, :, :columns]),
            lengths=torch.from_numpy(self.batches["lengths"][number]),
            image_labels=labels,
            text_labels=labels,
            classes=labels,
            picture_rows=torch.arange(len(labels)),
            pictures=torch.from_numpy(self.batches["images_uint8"][number]).permute(0, 3, 1, 2),
        )
        return {name: float(value) for name, value in self.training(batch, number, observe=True).items()}

    def recorded(self, moment: str) -> dict[str, Tensor]:
        """Our names -> values the original had after a step (`after10`) or its averages (`ema30`)."""
        found = dict(self.initial)
        prefix = f"{moment}:"
        changed = {key.removeprefix(prefix): self.expected[key] for key in self.expected if key.startswith(prefix)}
        known = set(changed) | set(self.expected.get(f"{moment}_same_as_initial", []))
        found |= changed
        values: dict[str, Tensor] = {}
        for part, (scope, module) in self.parts.items():
            if moment.startswith("ema") and part == "text_encoder":
                continue
            assert all(name in known for name in found if name.startswith(scope + "/")), "the record has a gap"
            state = state_from_tf_variables(module.double() if moment.startswith("after") else module, found, scope)
            values |= {f"{part}.{name}": value for name, value in state.items()}
        if moment.startswith("after"):
            values["losses.cmpc.weight"] = torch.from_numpy(np.asarray(found["Wfc"], dtype=np.float64))
        return values

    def present(self) -> dict[str, Tensor]:
        state = dict(self.model.state_dict())
        return state | {f"losses.{name}": value for name, value in self.losses.state_dict().items()}


VARIANTS = [(tower, variant) for tower in ("mobilenet_v1_025", "resnet_v1_tiny") for variant in ("trainable", "frozen")]


@pytest.mark.parametrize(("tower", "variant"), VARIANTS)
def test_thirty_steps_in_float64_are_the_originals(shared_oracle: Path, tower: str, variant: str):
    run = Trajectory(shared_oracle / "training", tower, variant, torch.float64)
    for number in range(30):
        seen = run.step(number)
        for ours, theirs in TERMS.items():
            assert seen[ours] == pytest.approx(run.expected[f"loss_{theirs}_f64"][number], abs=1e-9), (number, ours)
        total = seen["loss"] + seen["regularization"]
        assert total == pytest.approx(run.expected["loss_total_f64"][number], abs=1e-9)
        if number + 1 in (1, 10, 30):
            present = run.present()
            for name, value in run.recorded(f"after{number + 1}").items():
                torch.testing.assert_close(
                    present[name], value, atol=2e-7, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
                )
        if number + 1 in (1, 30):
            averaged = {**run.present(), **run.training.averages.shadows}
            for name, value in run.recorded(f"ema{number + 1}").items():
                torch.testing.assert_close(
                    averaged[name], value, atol=2e-7, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
                )
