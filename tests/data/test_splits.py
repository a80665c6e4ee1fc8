"""Datasets of (image, captions, label) and splits brought together as data to train on."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from crosspair.data import GivenData, from_dataset
from crosspair.errors import UserError


class Colours(Dataset):
    def __init__(self, *items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


RED, BLUE = Image.new("RGB", (6, 4), "red"), np.zeros((4, 6, 3), np.uint8)


def split(*items):
    return from_dataset(Colours(*items), progress=False)


def test_a_dataset_has_the_captions_labels_and_images_of_its_items():
    found = split((RED, "a red one", 7), (BLUE, ["black", "no light"], torch.tensor(9)))
    assert len(found) == 2
    assert found.captions == [["a red one"], ["black", "no light"]]
    assert found.labels.tolist() == [7, 9]
    assert found.labels.dtype == np.int64
    assert found.image(0) is RED
    assert found.word_counts()["red"] == 1
    assert found.describe() == {"dataset": "Colours", "images": 2}


def test_without_labels_each_image_has_one_of_its_own():
    found = split((RED, ["a red one"]), (BLUE, ("black", "no light")))
    assert found.labels.tolist() == [0, 1]
    assert found.captions == [["a red one"], ["black", "no light"]]
    assert found.image(1) is BLUE


def test_the_checksum_follows_pixels_captions_and_labels_and_not_the_kind_of_image():
    first = split((RED, "a red one", 7)).checksum
    assert split((np.array(RED), ["a red one"], 7)).checksum == first
    for other in (
        (BLUE, "a red one", 7),
        (RED, "a red two", 7),
        (RED, "a red one", 8),
        (RED.rotate(90, expand=True), "a red one", 7),
    ):
        assert split(other).checksum != first


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ((RED, "red"), r"item 1 of the dataset has 2 values, the first 3; expected a label in all or in none"),
        ((RED, "red", 1, 1), r"item 1 of the dataset is 4 values; expected \(image, captions, label\)"),
        (7, r"item 1 of the dataset is int; expected"),
        ((RED, [], 0), r"item 1 of the dataset has the captions \[\]; expected a sentence or several"),
        ((RED, ["red", " "], 0), r"item 1 of the dataset has the captions"),
        ((RED, "red", "seven"), r"item 1 of the dataset has the label 'seven'; expected an integer"),
        ((RED, "red", 2**63), r"which no 64 bits hold"),
        ((torch.rand(3, 4, 4), "red", 0), r"found torch.float32 \[3, 4, 4\] as image 1 of the dataset; expected"),
        ((b"no image", "red", 0), r"image 1 of the dataset is not a picture in a known format"),
    ],
)
def test_an_item_that_cannot_be_used_is_named(item, expected):
    with pytest.raises(UserError, match=expected):
        split((RED, "red", 0), item)


def test_an_empty_dataset_is_refused():
    with pytest.raises(UserError, match="the dataset is empty"):
        split()


def test_splits_come_from_anywhere():
    given = GivenData({"train": Colours((RED, "red", 0)), "val": split((BLUE, "blue", 1))})
    assert given.split("train").captions == [["red"]]
    assert given.split("val").captions == [["blue"]]
    with pytest.raises(UserError, match="the data has no split 'test'; it has train, val"):
        given.split("test")
