from collections.abc import Callable

import numpy as np
import pytest
import torch

from crosspair.data.images import decode_image
from crosspair.data.readers.tfrecord import read_tfrecords
from crosspair.data.transforms import resize_bilinear_tensorflow1
from crosspair.models.slim.encoders import slim_input
from tests.fixtures.paths import TFRECORDS

Load = Callable[[str], dict[str, np.ndarray]]


@pytest.mark.parametrize("image", ["image0", "image1", "image2"])
@pytest.mark.parametrize(
    ("reference", "encoder"),
    [("mobilenet_v1", "slim_mobilenet_v1"), ("resnet_v1_152", "slim_resnet_v1_152")],
)
def test_resize_and_normalisation_give_the_original_pixels(
    image: str, reference: str, encoder: str, oracle: Load
) -> None:
    expected = oracle("preprocessing")
    image_input = slim_input(encoder)
    image_input.resample = "tensorflow1"
    resized = image_input.resize(torch.tensor(expected[f"{image}_uint8"]).permute(2, 0, 1))
    found = image_input.normalize(resized[None])[0].permute(1, 2, 0).numpy()
    tolerance = 1e-6 if reference == "mobilenet_v1" else 1e-4  # of -1..1 and of 0..255
    key = f"{image}_{reference}"
    np.testing.assert_allclose(found[::7, ::7], expected[f"{key}_rows0_7_14"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(found[-1], expected[f"{key}_last_row"], rtol=0, atol=tolerance)
    assert found.mean(dtype=np.float64) == pytest.approx(float(expected[f"{key}_full_mean"]), abs=tolerance)


def test_a_picture_of_the_right_size_keeps_its_values() -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(resize_bilinear_tensorflow1(image, (5, 7)), image.float())


def test_doubling_repeats_the_last_line() -> None:
    image = torch.tensor([0.0, 10.0]).expand(3, 1, 2)
    assert resize_bilinear_tensorflow1(image, (1, 4))[0, 0].tolist() == [0, 5, 10, 10]


def test_decoded_pictures_are_within_8_levels_of_tensorflows_fast_transform(oracle: Load) -> None:
    expected = oracle("checkpoint/embeddings")
    images = [record.image for record in read_tfrecords(TFRECORDS / "flickr") if record.split == "test"]
    for row, image in enumerate(images):
        assert isinstance(image, bytes)
        levels = abs(decode_image(image).permute(1, 2, 0).numpy().astype(int) - expected[f"image{row}_uint8"])
        assert 0 < levels.max() <= 8
        assert levels.mean() < 2
