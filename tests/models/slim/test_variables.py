from collections.abc import Callable

import numpy as np
import pytest
import torch

from crosspair.errors import UserError
from crosspair.models.projection import Projection
from crosspair.models.slim.layers import norm_momentum
from crosspair.models.slim.mobilenet import slim_mobilenet_v1
from crosspair.models.slim.variables import load_tf_variables, state_from_tf_variables
from crosspair.models.text import BiLSTMEncoder

Load = Callable[[str], dict[str, np.ndarray]]
SCOPE = "joint_embedding/image_joint_embedding"


def text_encoder(weights: dict[str, np.ndarray], *, pool_padding: bool) -> BiLSTMEncoder:
    encoder = BiLSTMEncoder(50, 16, 16, pool_padding=pool_padding).eval()
    load_tf_variables(encoder, weights, "BiLSTM")
    return encoder


@torch.no_grad()
def test_the_text_encoder_gives_the_original_features_of_a_padded_batch(oracle: Load, oracle_weights: Load) -> None:
    expected = oracle("text_tower")
    encoder = text_encoder(oracle_weights("text_tower"), pool_padding=True)
    found = encoder(torch.tensor(expected["input_ids"]), torch.tensor(expected["lengths"]))
    np.testing.assert_allclose(found, expected["features_padded_batch"][:, 0, 0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_pooling_words_alone_gives_the_original_features_of_single_captions(oracle: Load, oracle_weights: Load) -> None:
    expected = oracle("text_tower")
    encoder = text_encoder(oracle_weights("text_tower"), pool_padding=False)
    found = encoder(torch.tensor(expected["input_ids"]), torch.tensor(expected["lengths"]))
    np.testing.assert_allclose(found, expected["features_one_at_a_time"][:, 0, 0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "epsilon", "decay"), [("mobilenet_v1", 1e-3, 0.9997), ("resnet_v1_152", 1e-5, 0.997)]
)
def test_the_projection_gives_the_original_outputs_and_moves_the_statistics_as_it_did(
    backbone: str, epsilon: float, decay: float, oracle: Load, oracle_weights: Load
) -> None:
    file = f"joint_embedding_{backbone}"
    expected = oracle(file)
    projection = Projection(32, 24, eps=epsilon, momentum=norm_momentum(decay))
    load_tf_variables(projection, oracle_weights(file), SCOPE)
    features = torch.tensor(expected["input"][:, 0, 0])
    np.testing.assert_allclose(projection.eval()(features), expected["output_eval_mode"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(projection.train()(features), expected["output_train_mode"], rtol=0, atol=1e-5)
    moved = f"after_one_update:{SCOPE}/BatchNorm"
    np.testing.assert_allclose(projection.norm.running_mean, expected[f"{moved}/moving_mean"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(projection.norm.running_var, expected[f"{moved}/moving_variance"], rtol=0, atol=1e-6)


def test_missing_unknown_and_mis_shaped_variables_are_named(oracle_weights: Load) -> None:
    weights = oracle_weights("joint_embedding_mobilenet_v1")
    with pytest.raises(UserError, match=f"missing below '{SCOPE}': BatchNorm/beta; expected"):
        load_tf_variables(Projection(32, 24), {k: v for k, v in weights.items() if not k.endswith("beta")}, SCOPE)
    with pytest.raises(UserError, match=f"unknown below '{SCOPE}': biases; expected"):
        load_tf_variables(Projection(32, 24), {**weights, f"{SCOPE}/biases": np.zeros(24)}, SCOPE)
    with pytest.raises(UserError, match=r"mis-shaped below .*: weights \[1, 1, 32, 24\]; expected"):
        load_tf_variables(Projection(16, 24), weights, SCOPE)
    with pytest.raises(UserError, match=r"mis-shaped below .*: weights \[24\]; expected"):
        load_tf_variables(Projection(32, 24), {**weights, f"{SCOPE}/weights": np.zeros(24)}, SCOPE)


def test_a_refused_load_leaves_the_module_as_it_was(oracle_weights: Load) -> None:
    encoder = BiLSTMEncoder(51, 16, 16)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(UserError, match="token_embedding_weights"):
        load_tf_variables(encoder, oracle_weights("text_tower"), "BiLSTM")
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_variables_of_other_scopes_are_left_alone_and_the_module_keeps_its_type(oracle_weights: Load) -> None:
    weights = oracle_weights("mobilenet_v1_025")
    tower = slim_mobilenet_v1(0.25).double()
    state = state_from_tf_variables(tower, {**weights, "Wfc": np.zeros((2, 2))}, "MobilenetV1")
    batches = {name for name in tower.state_dict() if name.endswith("num_batches_tracked")}
    assert state.keys() | batches == tower.state_dict().keys()
    assert {tensor.dtype for tensor in state.values()} == {torch.float64}


def test_a_module_without_tensorflow_names_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="Linear"):
        load_tf_variables(torch.nn.Linear(2, 2), {}, "fc")
