import math

import numpy as np
import pytest
import torch
from torch import nn

from crosspair.encode.model import DualEncoder
from crosspair.registry import OPTIMIZERS
from crosspair.training.losses import MatchingLosses
from crosspair.training.optimizer import StageOptimizer, decayed_parameters, learning_rate_share
from crosspair.training.optimizers import TensorFlowAdam
from crosspair.training.recipe import OptimizerConfig, Recipe, StageConfig
from tests.fixtures.models import create_tiny_model


@pytest.fixture
def model() -> DualEncoder:
    return create_tiny_model(image={"name": "test_efficientnet"}).double()  # has depthwise convolutions


@pytest.fixture
def losses() -> MatchingLosses:
    return MatchingLosses(Recipe().loss, num_classes=5, embedding_dim=8).double()


def names_of(values, *modules: nn.Module) -> set[str]:
    wanted = {id(value) for value in values}
    return {name for module in modules for name, value in module.named_parameters() if id(value) in wanted}


def naive_adam(weight, gradients, *, rate, beta1, beta2, epsilon, decay, tensorflow=False, decoupled=False):
    """Kingma and Ba, algorithm 1, one number at a time; with `tensorflow` the form before section 2.1."""
    first = second = np.zeros_like(weight)
    for t, gradient in enumerate(gradients, start=1):
        if decoupled:
            weight = weight - rate * decay * weight
        else:
            gradient = gradient + decay * weight
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        if tensorflow:
            step = rate * math.sqrt(1 - beta2**t) / (1 - beta1**t)
            weight = weight - step * first / (np.sqrt(second) + epsilon)
        else:
            weight = weight - rate * (first / (1 - beta1**t)) / (np.sqrt(second / (1 - beta2**t)) + epsilon)
    return weight


@pytest.mark.parametrize("name", ["adam", "adamw", "tensorflow-adam"])
def test_updates_follow_the_formula_with_decay_on_what_decays_alone(model, losses, name):
    config = OptimizerConfig(name, 0.1, settings={"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3})
    optimizer = StageOptimizer(model, losses, config, StageConfig(learning_rate=0.01, image_learning_rate=0.002), 4)
    random = np.random.default_rng(0)
    # The settings of TensorFlow's Adam are float32 numbers.
    number = (lambda value: float(np.float32(value))) if name == "tensorflow-adam" else float
    cases = {
        "a decayed matrix": (model.text_projection.linear.weight, 0.01, 0.1),
        "a bias": (model.text_projection.norm.bias, 0.01, 0.0),
        "the word embedding": (model.text_encoder.embedding.weight, 0.01, 0.0),
        "the class weights": (losses["cmpc"].weight, 0.01, 0.1),
        "a kernel of the image encoder": (model.image_encoder.conv_stem.weight, 0.002, 0.1),
    }
    gradients = {case: [random.standard_normal(tuple(v[0].shape)) for _ in range(4)] for case, v in cases.items()}
    before = {case: weight.detach().numpy().copy() for case, (weight, _, _) in cases.items()}
    for step in range(4):
        optimizer.prepare(step)
        for case, (weight, _, _) in cases.items():
            weight.grad = torch.from_numpy(gradients[case][step])
        optimizer.inner.step()
    for case, (weight, rate, decay) in cases.items():
        settings = {"rate": number(rate), "beta1": number(0.8), "beta2": number(0.95), "epsilon": number(1e-3)}
        kinds = {"tensorflow": name == "tensorflow-adam", "decoupled": name == "adamw"}
        expected = naive_adam(before[case], gradients[case], **settings, decay=decay, **kinds)
        # beta^t is a float32 product in TensorFlow's.
        tolerance = 1e-7 if name == "tensorflow-adam" else 1e-13
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=tolerance, atol=tolerance, err_msg=case)


def test_the_two_adams_differ_where_gradients_are_small():
    updates = []
    for kind in (torch.optim.Adam, TensorFlowAdam):
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        weight.grad = torch.full((1,), 1e-8, dtype=torch.float64)
        kind([weight], lr=1.0).step()
        updates.append(weight.item())
    assert updates[0] == pytest.approx(-0.5)
    assert updates[1] == pytest.approx(-1e-9 / (1e-8 * math.sqrt(1e-3) + 1e-8) * math.sqrt(1e-3) / 0.1, rel=1e-4)


def test_tensorflow_adam_leaves_weights_without_gradients_alone_and_calls_a_closure_with_gradients():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = TensorFlowAdam([used, unused], lr=0.1, weight_decay=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert (used < 1).all()
    assert unused.eq(1).all()
    assert unused not in optimizer.state


class TestWhatDecays:
    def test_are_matrices_and_kernels_but_not_the_word_embedding(self, model, losses):
        decayed = names_of(decayed_parameters(model, losses, "weights"), model, losses)
        assert {"text_encoder.lstm.weight_ih_l0", "text_projection.linear.weight", "cmpc_loss.weight"} <= decayed
        assert "image_encoder.conv_stem.weight" in decayed
        assert "text_encoder.embedding.weight" not in decayed
        assert not [name for name in decayed if "bias" in name or ".norm." in name or ".bn" in name]

    def test_are_for_the_original_plain_convolutions_and_the_projections(self, model, losses):
        decayed = names_of(decayed_parameters(model, losses, "convolutions"), model, losses)
        depthwise = {
            f"image_encoder.{name}.weight"
            for name, module in model.image_encoder.named_modules()
            if isinstance(module, nn.Conv2d) and module.groups > 1
        }
        assert depthwise
        assert not decayed & depthwise
        assert {name for name in decayed if not name.startswith("image_encoder.")} == {
            "image_projection.linear.weight",
            "text_projection.linear.weight",
        }

    def test_are_without_biases_all_others_norms_and_words_too(self, model, losses):
        decayed = names_of(decayed_parameters(model, losses, "no-biases"), model, losses)
        everything = {name for module in (model, losses) for name, _ in module.named_parameters()}
        assert everything - decayed == {name for name in everything if "bias" in name}
        assert {"text_encoder.embedding.weight", "text_projection.norm.weight", "cmpc_loss.weight"} <= decayed
        assert "text_encoder.lstm.bias_ih_l0" not in decayed

    def test_is_half_the_sum_of_squares_frozen_or_not(self, model, losses):
        model.freeze_image_encoder()
        optimizer = StageOptimizer(model, losses, OptimizerConfig(weight_decay=0.02), StageConfig(), 1)
        decayed = decayed_parameters(model, losses, "weights")
        expected = 0.02 * sum((value.detach().numpy() ** 2).sum() for value in decayed) / 2
        assert optimizer.regularization().item() == pytest.approx(expected, rel=1e-12)
        assert any(not value.requires_grad for value in decayed)


class TestLearningRates:
    def test_the_image_encoder_has_its_own(self, model, losses):
        stage = StageConfig(learning_rate=0.01, image_learning_rate=0.002, warmup_steps=3)
        optimizer = StageOptimizer(model, losses, OptimizerConfig(), stage, 10)
        optimizer.prepare(1)
        image = {id(value) for value in model.image_encoder.parameters()}
        for group in optimizer.inner.param_groups:
            for value in group["params"]:
                assert group["lr"] == pytest.approx((0.002 if id(value) in image else 0.01) * 2 / 4)

    def test_biases_of_the_model_have_a_rate_of_their_own_and_those_of_losses_do_not(self, model):
        losses = MatchingLosses({"identity": 1.0}, num_classes=5, embedding_dim=8).double()
        stage = StageConfig(learning_rate=0.01, image_learning_rate=0.002)
        optimizer = StageOptimizer(model, losses, OptimizerConfig(bias_rate=2.0), stage, 10)
        optimizer.prepare(0)
        rates = {id(value): group["lr"] for group in optimizer.inner.param_groups for value in group["params"]}
        for name, value in model.named_parameters():
            if id(value) in rates:
                rate = 0.002 if name.startswith("image_encoder.") else 0.01
                assert rates[id(value)] == pytest.approx(rate * (2 if "bias" in name else 1)), name
        assert {rates[id(value)] for value in losses.parameters()} == {0.01}

    def test_the_image_encoder_has_the_stages_without_its_own(self, model, losses):
        optimizer = StageOptimizer(model, losses, OptimizerConfig(), StageConfig(learning_rate=0.01), 10)
        optimizer.prepare(0)
        assert {group["lr"] for group in optimizer.inner.param_groups} == {0.01}

    def test_every_trainable_weight_is_in_one_group_and_no_frozen_one(self, model, losses):
        model.freeze_image_encoder()
        optimizer = StageOptimizer(model, losses, OptimizerConfig(), StageConfig(), 10)
        trained = [value for group in optimizer.inner.param_groups for value in group["params"]]
        expected = [value for module in (model, losses) for value in module.parameters() if value.requires_grad]
        assert sorted(map(id, trained)) == sorted(map(id, expected))

    def test_warm_up_rises_in_equal_steps_to_the_full_rate(self):
        stage = StageConfig(warmup_steps=4)
        shares = [learning_rate_share(step, 10, stage) for step in range(7)]
        assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])

    def test_warm_up_may_rise_from_a_share_of_the_rate(self):
        stage = StageConfig(warmup_steps=4, warmup_start=0.1)
        shares = [learning_rate_share(step, 10, stage) for step in range(6)]
        assert shares == pytest.approx([0.28, 0.46, 0.64, 0.82, 1, 1])

    def test_a_constant_rate_is_constant(self):
        assert {learning_rate_share(step, 10, StageConfig()) for step in range(10)} == {1.0}

    def test_cosine_falls_from_the_full_rate_towards_zero(self):
        stage = StageConfig(schedule="cosine")
        shares = [learning_rate_share(step, 10, stage) for step in range(10)]
        assert shares == pytest.approx([(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)])
        assert shares[0] == 1
        assert learning_rate_share(10, 10, stage) == pytest.approx(0, abs=1e-15)

    def test_cosine_begins_after_the_warm_up(self):
        stage = StageConfig(schedule="cosine", warmup_steps=2)
        shares = [learning_rate_share(step, 6, stage) for step in range(6)]
        halves = [(1 + math.cos(math.pi * part / 4)) / 2 for part in (0, 1, 2, 3)]
        assert shares == pytest.approx([1 / 3, 2 / 3, *halves])

    def test_a_warm_up_longer_than_the_stage_never_reaches_the_full_rate(self):
        stage = StageConfig(schedule="cosine", warmup_steps=100)
        assert all(0 < learning_rate_share(step, 10, stage) < 0.11 for step in range(10))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS.names() if name != "adam"] + ["adam"])
def test_a_loaded_optimizer_goes_on_to_the_bit(model, losses, name):
    stage = StageConfig(learning_rate=0.01, image_learning_rate=0.002, schedule="cosine")

    def create() -> StageOptimizer:
        return StageOptimizer(model, losses, OptimizerConfig(name), stage, 6)

    def steps(optimizer: StageOptimizer, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            for group in optimizer.inner.param_groups:
                for weight in group["params"]:
                    weight.grad = torch.randn_like(weight)
            optimizer.prepare(step)
            optimizer.inner.step()

    optimizer = create()
    steps(optimizer, 0, 3)
    assert bool(optimizer.tensors()) == (name != "sgd")  # which keeps nothing
    moments = {key: value.clone().contiguous() for key, value in optimizer.tensors().items()}
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    steps(optimizer, 3, 6)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    again = create()
    again.load(moments)
    steps(again, 3, 6)
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key
