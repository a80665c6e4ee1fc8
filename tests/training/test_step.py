import os
import signal
from dataclasses import fields

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from crosspair.data.batching import Batch
from crosspair.encode.model import DualEncoder
from crosspair.training.interruption import Interrupted
from crosspair.training.loop import train
from crosspair.training.losses import MatchingLosses
from crosspair.training.recipe import Recipe, StageConfig
from crosspair.training.step import EmbeddingsInParts, TrainingStep
from tests.fixtures.models import create_tiny_model


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def model() -> DualEncoder:
    return create_tiny_model(image={"feature_dropout": 0.3}, text={"dropout": 0.3})


@pytest.fixture
def batch() -> Batch:
    """11 pictures of 4 labels with 1 to 3 captions each."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(11).repeat_interleave(torch.tensor([1, 2, 3, 1, 1, 3, 2, 2, 1, 3, 1]))
    labels = torch.arange(11) % 4
    lengths = torch.randint(1, 7, (len(rows),), generator=generator)
    tokens = torch.randint(1, 5, (len(rows), 6), generator=generator)
    tokens[torch.arange(6) >= lengths[:, None]] = 0
    images = torch.randint(0, 256, (11, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(tokens, lengths, labels, labels[rows], rows, images=images)


def gradients(*modules: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for module in modules:
        found |= {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}
        module.zero_grad()
    return found


def test_parts_hold_every_picture_with_its_captions(batch):
    parts = batch.split(3)
    assert [len(part.image_labels) for part in parts] == [3, 4, 4]
    for part in parts:
        assert torch.equal(part.text_labels, part.image_labels[part.image_rows])
    left_out = {"image_rows", "features", "text_features"}
    for name in (item.name for item in fields(batch) if item.name not in left_out):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("parts", [2, 5])
def test_gradients_are_those_of_the_whole_batch(fabric, model, batch, dtype, tolerance, parts):
    model.to(dtype).unfreeze_image_encoder(freeze_bn_stats=True)  # that of the projections is in training mode
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    losses = MatchingLosses({"cmpm": 1.0, "cmpc": 1.0, "infonce": 1.0, "triplet": 1.0, "siglip": 0.1}, 4, 8).to(dtype)
    total, _ = losses(*model(batch.tokens, batch.lengths, images=batch.images), batch)
    total.backward()
    expected = gradients(model, losses)
    found_total = loss_in_parts(fabric, model, losses, batch, parts)
    found = gradients(model, losses)
    assert found_total.item() == pytest.approx(total.item(), rel=tolerance)
    assert found.keys() == expected.keys()
    trained = ("cmpc_loss.weight", "siglip_loss.bias", "image_projection.linear", "image_encoder.conv1")
    trained += ("text_encoder.embedding",)
    assert all(any(name.startswith(start) for name in found) for start in trained)
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * largest, name


def loss_in_parts(fabric, model, losses, batch, parts=3) -> torch.Tensor:
    """Forward and backward."""
    embedded = EmbeddingsInParts(fabric, model, batch, parts)
    total, _ = losses(embedded.image_embeddings, embedded.text_embeddings, batch)
    torch.rand(3)  # a loss may draw too
    total.backward()
    embedded.backward()
    return total


class TestInTrainingMode:
    @pytest.fixture
    def losses(self) -> MatchingLosses:
        return MatchingLosses(Recipe().loss, 4, 8)

    @pytest.mark.parametrize("encoder", ["image_encoder", "text_encoder"])
    def test_both_passes_draw_the_same_and_random_numbers_go_on_after_the_loss(
        self, fabric, model, losses, batch, monkeypatch, encoder
    ):
        drawn, states = [], []
        getattr(model, encoder).register_forward_hook(lambda *_: drawn.append(torch.rand(1).item()))
        backward = EmbeddingsInParts.backward

        def watched(self):
            states.append(torch.get_rng_state())
            backward(self)

        monkeypatch.setattr(EmbeddingsInParts, "backward", watched)
        loss_in_parts(fabric, model, losses, batch)
        assert len(set(drawn[:3])) == 3
        assert drawn[:3] == drawn[3:]
        assert torch.equal(torch.get_rng_state(), states[0])

    def test_running_statistics_move_once_for_each_part_and_the_projections_once(self, fabric, model, losses, batch):
        loss_in_parts(fabric, model, losses, batch)
        assert model.image_encoder.bn1.num_batches_tracked == 3
        assert model.image_projection.norm.num_batches_tracked == 1
        moved = model.image_encoder.bn1.running_mean.clone()
        assert moved.ne(0).any()
        torch.manual_seed(0)
        model.image_encoder.bn1.reset_running_stats()
        with torch.no_grad():
            for part in batch.split(3):
                model.image_features(part.images)
        assert torch.equal(model.image_encoder.bn1.running_mean, moved)

    def test_no_more_than_a_part_is_kept_for_a_backward_pass(self, fabric, model, losses, batch):
        images = []
        model.image_encoder.register_forward_pre_hook(
            lambda _module, inputs: images.append((len(inputs[0]), torch.is_grad_enabled()))
        )
        loss_in_parts(fabric, model, losses, batch)
        assert images == [(3, False), (4, False), (4, False), (3, True), (4, True), (4, True)]

    def test_a_frozen_encoder_runs_once(self, fabric, model, losses, batch):
        model.freeze_image_encoder()
        calls = []
        model.image_encoder.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        loss_in_parts(fabric, model, losses, batch)
        assert calls == [False] * 3


def test_a_run_in_mini_batches_resumes_to_the_bit(toy_data, toy_recipe, tmp_path, monkeypatch):
    stage = {"batch_size": 6, "mini_batch_size": 4, "epoch_covers": "images", "captions_per_image": 2}
    recipe = toy_recipe(
        stage1=StageConfig(1, freeze_image_encoder=True, **stage),
        stage2=StageConfig(2, smallest_crop=0.6, **stage),
        loss={"cmpm": {"weight": 1.0, "scale": 20.0}, "cmpc": 1.0, "infonce": 1.0, "siglip": 0.1},
    )
    train(recipe, toy_data, tmp_path / "undisturbed", progress=False)
    step, taken = TrainingStep.__call__, []

    def stopping(self, *arguments, **options):
        taken.append(None)
        if len(taken) in {2, 4}:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments, **options)

    monkeypatch.setattr(TrainingStep, "__call__", stopping)
    for turn in range(3):
        try:
            train(recipe, toy_data, tmp_path / "stopped", resume=turn > 0, progress=False)
        except Interrupted:
            continue
    assert len(taken) == 6
    last = "checkpoints/step-00000006"
    for name in ("model", "losses"):
        expected, found = (
            load_file(tmp_path / run / last / f"{name}.safetensors") for run in ("undisturbed", "stopped")
        )
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert float(expected["cmpm_loss.scale.logarithm"].exp()) != pytest.approx(20.0, rel=1e-5)
