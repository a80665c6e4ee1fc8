from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from crosspair.data.images import decode_image
from crosspair.data.readers.tfrecord import read_tfrecords
from crosspair.data.transforms import random_erase, random_shift, resize_bilinear_tensorflow1
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


class TestShift:
    def test_moves_the_image_and_fills_in_black(self):
        image = torch.arange(1, 13, dtype=torch.uint8).view(1, 3, 4).expand(3, 3, 4)
        assert torch.equal(random_shift(image, 1, [0.5, 0.5]), image)
        moved = random_shift(image, 1, [0.0, 0.999])  # down by one, left by one
        assert moved[0].tolist() == [[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]

    def test_reaches_every_place_equally_often(self):
        image = torch.ones(3, 5, 5, dtype=torch.uint8)
        image[:, 2, 2] = 200
        random = np.random.default_rng(0)
        places = Counter()
        for _ in range(2000):
            shifted = random_shift(image, 2, random.random(2))
            assert shifted.shape == image.shape
            places[int(shifted[0].argmax())] += 1
        assert len(places) == 25
        assert max(places.values()) < 2 * min(places.values())


class TestErasing:
    @pytest.mark.parametrize("size", [(384, 128), (224, 224), (32, 64)])
    def test_puts_one_box_of_the_colour_into_the_image(self, size):
        random = np.random.default_rng(0)
        areas = []
        for _ in range(300):
            image = torch.zeros(3, *size, dtype=torch.uint8)
            erased = random_erase(image, random.random(4), [0.5, 0.25, 1.0])
            rows, columns = (erased[0] > 0).any(1).nonzero()[:, 0], (erased[0] > 0).any(0).nonzero()[:, 0]
            box = erased[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box[:, 0, 0].tolist() == [128, 64, 255]
            assert (box == box[:, :1, :1]).all()
            assert (erased[0] > 0).sum() == box[0].numel()
            assert image.eq(0).all()  # the one that was given stays as it was
            assert 0.25 < box.shape[1] / box.shape[2] < 3.8
            areas.append(box[0].numel() / (size[0] * size[1]))
        assert min(areas) > 0.015
        assert max(areas) < 0.42
        assert np.mean(areas) == pytest.approx(0.21, abs=0.02)
