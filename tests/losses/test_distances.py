import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from crosspair.losses import pair_distances

CASES = [f"cmpm{number:02d}" for number in range(32)]


@pytest.mark.parametrize("name", CASES)
def test_distances_are_the_reference_ones(name: str, oracle_case: Callable[[str], dict[str, Any]]) -> None:
    case = oracle_case(name)
    image, text = (torch.tensor(case[key], dtype=torch.float64) for key in ("image", "text"))
    found = pair_distances(image, text, torch.tensor(case["labels"]))
    assert found.positive.item() == pytest.approx(float(case["pos_avg_dist_f64"]), abs=1e-10)
    assert found.negative.item() == pytest.approx(float(case["neg_avg_dist_f64"]), abs=1e-10, nan_ok=True)


def test_distances_of_different_numbers_of_images_and_texts_are_means_over_pairs() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    texts = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    found = pair_distances(images, texts, torch.tensor([4, 9]), torch.tensor([4, 4, 9]))
    np.testing.assert_allclose(found, ((0 + 2 + 0) / 3, (1 + 1 + 1) / 3), atol=1e-7)


def test_without_a_negative_pair_its_distance_is_nan_and_nothing_carries_a_gradient() -> None:
    images = torch.randn(3, 4, requires_grad=True)
    found = pair_distances(images, images, torch.zeros(3, dtype=torch.int64))
    assert math.isnan(found.negative)
    assert not found.positive.requires_grad
