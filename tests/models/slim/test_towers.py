from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.models.slim.encoders import slim_input
from crosspair.models.slim.layers import norm_momentum, pad_same
from crosspair.models.slim.mobilenet import SlimMobileNet, slim_mobilenet_v1
from crosspair.models.slim.resnet import SlimResNet
from crosspair.models.slim.variables import load_tf_variables
from crosspair.original.verify.towers import TINY_BLOCKS
from crosspair.registry import IMAGE_ENCODERS

Load = Callable[[str], dict[str, np.ndarray]]

# Tower, its file, its scope, the encoder whose input it takes.
TOWERS = [
    pytest.param(
        lambda: slim_mobilenet_v1(0.25), "mobilenet_v1_025", "MobilenetV1", "slim_mobilenet_v1", id="mobilenet"
    ),
    pytest.param(
        lambda: SlimResNet(TINY_BLOCKS), "resnet_v1_tiny", "resnet_v1_tiny", "slim_resnet_v1_152", id="resnet"
    ),
]


def end_points(tower: nn.Module) -> dict[str, Tensor]:
    """Maps that the tower's layers hand on, filled during its forward pass."""
    maps: dict[str, Tensor] = {}

    def keep(name: str, activation: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        return lambda module, inputs, output: maps.__setitem__(name, activation(output))

    if isinstance(tower, SlimMobileNet):
        for name, layer in tower.layers.items():
            layer.register_forward_hook(keep(name.capitalize(), F.relu6))
    elif isinstance(tower, SlimResNet):
        tower.conv1.register_forward_hook(keep("resnet_v1_tiny.conv1", F.relu))
        for block, units in tower.blocks.items():
            for unit, bottleneck in units.named_children():
                path = f"resnet_v1_tiny.{block}.{unit}.bottleneck_v1"
                bottleneck.register_forward_hook(keep(path, lambda maps: maps))
                bottleneck.conv2.register_forward_hook(keep(f"{path}.conv2", F.relu))
    return maps


@pytest.mark.parametrize(("build", "file", "scope", "input_name"), TOWERS)
def test_a_tower_with_the_original_weights_gives_the_original_features_and_maps(
    build: Callable[[], nn.Module], file: str, scope: str, input_name: str, oracle: Load, oracle_weights: Load
) -> None:
    expected = oracle(file)
    tower = build().eval()
    load_tf_variables(tower, oracle_weights(file), scope)
    maps = end_points(tower)
    pixels = slim_input(input_name).normalize(torch.tensor(oracle("image")["images_uint8"]).permute(0, 3, 1, 2))
    with torch.no_grad():
        features = tower(pixels)
    assert features.shape == (1, tower.num_features)
    np.testing.assert_allclose(features, expected["features"][:, 0, 0], rtol=0, atol=1e-4)
    assert len(maps) >= 17
    for name, found in maps.items():
        corners = torch.stack([found[0, :, 0, 0], found[0, :, -1, -1], found[0, :, 0, -1]])
        size = max(1.0, float(found.abs().max()))  # mobilenet's maps reach 6, the ResNet's more
        np.testing.assert_allclose(found.mean((2, 3)), expected[f"end_point_mean:{name}"], rtol=0, atol=1e-5 * size)
        np.testing.assert_allclose(corners, expected[f"end_point_corner:{name}"], rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("build", [lambda: slim_mobilenet_v1(0.25), lambda: SlimResNet(TINY_BLOCKS)])
@pytest.mark.parametrize("size", [(64, 64), (97, 65), (33, 48)])
def test_a_tower_takes_pictures_of_any_size(build: Callable[[], nn.Module], size: tuple[int, int]) -> None:
    tower = build().eval()
    with torch.no_grad():
        assert tower(torch.randn(2, 3, *size)).shape == (2, tower.num_features)


@pytest.mark.parametrize(
    ("name", "features", "tensors"),
    [
        ("slim_mobilenet_v1", 1024, 27),
        ("slim_mobilenet_v1_075", 768, 27),
        ("slim_resnet_v1_50", 2048, 53),
        ("slim_resnet_v1_101", 2048, 104),
        ("slim_resnet_v1_152", 2048, 155),
    ],
)
def test_named_encoders_have_the_published_depth_and_width(name: str, features: int, tensors: int) -> None:
    with torch.device("meta"):
        tower = IMAGE_ENCODERS.get(name)()
    assert tower.num_features == features
    assert sum(isinstance(module, nn.Conv2d) for module in tower.modules()) == tensors


def test_the_stride_sits_in_the_last_unit_of_the_first_three_stages() -> None:
    with torch.device("meta"):
        tower = IMAGE_ENCODERS.get("slim_resnet_v1_50")()
    strides = [[unit.stride for unit in block] for block in tower.blocks.values()]  # type: ignore[union-attr]
    assert strides == [[1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 1, 1, 2], [1, 1, 1]]


@pytest.mark.parametrize(("size", "before", "after"), [(8, 0, 1), (9, 1, 1)])
def test_same_padding_puts_an_odd_rest_behind(size: int, before: int, after: int) -> None:
    padded = pad_same(torch.ones(1, 1, size, size), kernel=3, stride=2)
    line = padded[0, 0, padded.shape[2] // 2]
    assert line.tolist() == [0.0] * before + [1.0] * size + [0.0] * after


def test_batch_norm_momentum_is_that_of_a_float32_decay() -> None:
    assert norm_momentum(0.9997) == pytest.approx(0.00029999018, abs=1e-11)
    assert norm_momentum(0.997) == pytest.approx(0.00300002098, abs=1e-11)
