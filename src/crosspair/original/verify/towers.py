"""Preprocessing, image towers, text encoder and projection against the original's, weights loaded by name."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crosspair.models.projection import Projection
from crosspair.models.slim import mobilenet as slim_mobilenet
from crosspair.models.slim import resnet as slim_resnet
from crosspair.models.slim.encoders import slim_input
from crosspair.models.slim.layers import norm_momentum
from crosspair.models.slim.mobilenet import slim_mobilenet_v1
from crosspair.models.slim.resnet import SlimResNet, Unit
from crosspair.models.slim.variables import load_tf_variables
from crosspair.models.text import BiLSTMEncoder
from crosspair.original.verify.reference import Comparison, largest_difference, load, weights, worst

# A small network of the original's ResNet generator; its ResNet-152 has the same rules and more and wider units.
TINY_BLOCKS = [[Unit(d, b, 1), Unit(d, b, s)] for d, b, s in [(32, 8, 2), (48, 12, 2), (64, 16, 2), (96, 24, 1)]]


def check_encoders() -> Iterator[Comparison]:
    """Largest absolute differences; pixels in the unit that an encoder expects."""
    with torch.no_grad():
        yield from _check_preprocessing()
        yield _check_image_encoder("MobileNet-v1 features", "slim_mobilenet_v1_025", slim_mobilenet_v1(0.25))
        yield _check_image_encoder("ResNet-v1 features", "slim_resnet_v1_152", SlimResNet(TINY_BLOCKS))
        yield from _check_text_encoder()
        yield from _check_projection(
            "MobileNet", "mobilenet_v1", slim_mobilenet.NORM_EPSILON, slim_mobilenet.NORM_DECAY
        )
        yield from _check_projection("ResNet", "resnet_v1_152", slim_resnet.NORM_EPSILON, slim_resnet.NORM_DECAY)


def _check_preprocessing() -> Iterator[Comparison]:
    expected = load("preprocessing")
    # Pixels of -1..1 and of 0..255.
    for name, tolerance in (("mobilenet_v1", 1e-6), ("resnet_v1_152", 1e-4)):
        image_input = slim_input(f"slim_{name}")
        image_input.resample = "tensorflow1"
        differences = []
        for image in ("image0", "image1"):
            resized = image_input.resize(_channels_first(expected[f"{image}_uint8"]))
            found = image_input.normalize(resized[None])[0].permute(1, 2, 0)
            differences.append(largest_difference(found[::7, ::7], expected[f"{image}_{name}_rows0_7_14"]))
            differences.append(largest_difference(found[-1], expected[f"{image}_{name}_last_row"]))
        kind = "MobileNet" if name.startswith("mobilenet") else "ResNet"
        yield Comparison(f"resized and normalised pixels for {kind}", worst(differences), tolerance)


def _check_image_encoder(what: str, encoder_name: str, tower: nn.Module) -> Comparison:
    mobilenet = encoder_name.startswith("slim_mobilenet")
    expected = load("mobilenet_v1_025" if mobilenet else "resnet_v1_tiny")
    load_tf_variables(tower.eval(), weights(expected), "MobilenetV1" if mobilenet else "resnet_v1_tiny")
    images = torch.stack([_channels_first(image) for image in load("image")["images_uint8"]])
    features = tower(slim_input(encoder_name).normalize(images))
    return Comparison(what, largest_difference(features, expected["features"][:, 0, 0]), 1e-4)


def _check_text_encoder() -> Iterator[Comparison]:
    expected = load("text_tower")
    tokens, lengths = torch.tensor(expected["input_ids"]), torch.tensor(expected["lengths"])
    ways = {"padded_batch": "padding in the maximum", "one_at_a_time": "words alone in the maximum"}
    for pool_padding, (key, meaning) in zip((True, False), ways.items(), strict=True):
        encoder = BiLSTMEncoder(50, 16, 16, pool_padding=pool_padding).eval()
        load_tf_variables(encoder, weights(expected), "BiLSTM")
        difference = largest_difference(encoder(tokens, lengths), expected[f"features_{key}"][:, 0, 0])
        yield Comparison(f"text features, {meaning}", difference, 1e-5)


def _check_projection(name: str, file: str, epsilon: float, decay: float) -> Iterator[Comparison]:
    scope = "joint_embedding/image_joint_embedding"
    expected = load(f"joint_embedding_{file}")
    projection = Projection(32, 24, eps=epsilon, momentum=norm_momentum(decay))
    load_tf_variables(projection, weights(expected), scope)
    features = torch.tensor(expected["input"][:, 0, 0])
    evaluated = largest_difference(projection.eval()(features), expected["output_eval_mode"])
    trained = largest_difference(projection.train()(features), expected["output_train_mode"])
    moved = {"moving_mean": projection.norm.running_mean, "moving_variance": projection.norm.running_var}
    statistics = [
        largest_difference(value, expected[f"after_one_update:{scope}/BatchNorm/{key}"])
        for key, value in moved.items()
        if value is not None
    ]
    yield Comparison(f"projection for {name}, evaluation", evaluated, 1e-5)
    yield Comparison(f"projection for {name}, training", trained, 1e-5)
    yield Comparison(f"projection for {name}, statistics after a step", worst(statistics), 1e-6)


def _channels_first(image: object) -> Tensor:
    """uint8 [h, w, 3] to [3, h, w]."""
    return torch.tensor(image).permute(2, 0, 1)
