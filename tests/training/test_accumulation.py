import os
import signal
from dataclasses import fields

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from cmpl.data.batching import Batch
from cmpl.data.text import Vocabulary
from cmpl.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig
from cmpl.models.dual_encoder import DualEncoder
from cmpl.training.accumulation import CachedEmbeddings
from cmpl.training.interruption import Interrupted
from cmpl.training.loop import train
from cmpl.training.losses import MatchingLosses
from cmpl.training.recipe import LossConfig, StageConfig
from cmpl.training.step import TrainingStep


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def model() -> DualEncoder:
    torch.manual_seed(0)
    image = ImageEncoderConfig("test_resnet", "none", [32, 32], feature_dropout=0.3)
    text = TextEncoderConfig(word_dim=8, hidden_dim=8, dropout=0.3)
    return DualEncoder(ModelConfig(image, text, ProjectionConfig(dim=8)), Vocabulary(["a", "b", "c"]))


@pytest.fixture
def batch() -> Batch:
    """11 pictures of 4 labels with 1 to 3 captions each."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(11).repeat_interleave(torch.tensor([1, 2, 3, 1, 1, 3, 2, 2, 1, 3, 1]))
    labels = torch.arange(11) % 4 + 2**40
    lengths = torch.randint(1, 7, (len(rows),), generator=generator)
    tokens = torch.randint(1, 5, (len(rows), 6), generator=generator)
    tokens[torch.arange(6) >= lengths[:, None]] = 0
    pictures = torch.randint(0, 256, (11, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(tokens, lengths, labels, labels[rows], rows % 4, rows, pictures=pictures)


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
        assert torch.equal(part.text_labels, part.image_labels[part.picture_rows])
    for name in (item.name for item in fields(batch) if item.name not in {"picture_rows", "features"}):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("parts", [2, 5])
def test_gradients_are_those_of_the_whole_batch(fabric, model, batch, dtype, tolerance, parts):
    model.to(dtype).eval()  # batch norm and dropout look at nothing but the picture or caption itself
    wrapped = fabric.setup_module(model)
    config = LossConfig(infonce=1.0, triplet=1.0, siglip=0.1)
    losses = MatchingLosses(config, 4, 8).to(dtype)
    total, _ = losses(*wrapped(batch.tokens, batch.lengths, pictures=batch.pictures), batch)
    fabric.backward(total)
    expected = gradients(model, losses)
    cached = CachedEmbeddings(wrapped, batch, parts)
    found_total, _ = losses(cached.image_embeddings, cached.text_embeddings, batch)
    fabric.backward(found_total)
    cached.backward(fabric)
    found = gradients(model, losses)
    assert found_total.item() == pytest.approx(total.item(), rel=tolerance)
    assert found.keys() == expected.keys()
    assert {"cmpc.weight", "siglip.bias", "image_projection.linear.weight"} <= found.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * largest, name


class TestInTrainingMode:
    @pytest.fixture
    def seen(self, model) -> list[tuple[torch.Tensor, ...]]:
        """Both embeddings, of every forward pass."""
        calls: list[tuple[torch.Tensor, ...]] = []
        model.register_forward_hook(lambda _module, _inputs, output: calls.append(tuple(v.detach() for v in output)))
        return calls

    def test_both_passes_drop_the_same_and_random_numbers_go_on_after_the_loss(self, fabric, model, batch, seen):
        cached = CachedEmbeddings(fabric.setup_module(model), batch, 3)
        torch.rand(3)  # a loss may draw too
        after = torch.get_rng_state()
        (cached.image_embeddings.sum() + cached.text_embeddings.sum()).backward()
        cached.backward(fabric)
        assert torch.equal(torch.get_rng_state(), after)
        assert len(seen) == 6
        for first, second in zip(seen[:3], seen[3:], strict=True):
            assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))

    def test_running_statistics_move_once_for_each_part(self, fabric, model, batch):
        cached = CachedEmbeddings(fabric.setup_module(model), batch, 3)
        norm = model.image_projection.norm
        assert norm.num_batches_tracked == 0
        assert norm.running_mean.eq(0).all()
        (cached.image_embeddings.sum() + cached.text_embeddings.sum()).backward()
        cached.backward(fabric)
        assert norm.num_batches_tracked == 3
        assert norm.running_mean.ne(0).any()

    def test_no_more_than_a_part_is_kept_for_a_backward_pass(self, fabric, model, batch):
        pictures = []
        model.image_encoder.register_forward_pre_hook(
            lambda _module, inputs: pictures.append((len(inputs[0]), torch.is_grad_enabled()))
        )
        cached = CachedEmbeddings(fabric.setup_module(model), batch, 3)
        (cached.image_embeddings.sum() + cached.text_embeddings.sum()).backward()
        cached.backward(fabric)
        assert pictures == [(3, False), (4, False), (4, False), (3, True), (4, True), (4, True)]


def test_a_run_in_micro_batches_resumes_to_the_bit(toy_data, toy_recipe, tmp_path, monkeypatch):
    stage = {"batch_size": 6, "micro_batch": 4, "epoch_covers": "pictures", "captions_per_picture": 2}
    recipe = toy_recipe(
        stage1=StageConfig(1, freeze_image_encoder=True, **stage),
        stage2=StageConfig(2, smallest_crop=0.6, **stage),
        loss=LossConfig(cmpm_scale=20.0, infonce=1.0, siglip=0.1),
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
    assert float(expected["cmpm_scale.logarithm"].exp()) != pytest.approx(20.0, rel=1e-5)
