from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspair.data.batching import BatchSource, Reading, load_batches
from crosspair.data.plans import BatchPlan, plan_epoch
from crosspair.data.transforms import ImageInput

counts = st.lists(st.integers(1, 7), min_size=1, max_size=40)


def plan(caption_counts, **changes):
    settings = {"batch_size": 4, "captions_per_image": 1, "covers": "captions", "hflip": True, "seed": (0, 1, 0)}
    return plan_epoch(caption_counts, **{**settings, **changes})


def drawn(plans: list[BatchPlan]) -> Counter[tuple[int, int]]:
    rows = [zip(batch.images, batch.captions, strict=True) for batch in plans]
    return Counter((int(image), int(caption)) for row in rows for image, chosen in row for caption in chosen)


@given(counts, st.integers(0, 5))
def test_an_epoch_over_captions_reads_each_exactly_once(caption_counts: list[int], group: int):
    everything = {(image, caption) for image, count in enumerate(caption_counts) for caption in range(count)}
    plans = plan(caption_counts, batch_size=1, captions_per_image=group)
    assert drawn(plans) == Counter(everything)


@given(counts, st.integers(0, 5))
def test_an_epoch_over_pictures_draws_each_once_with_captions_of_its_own(caption_counts: list[int], group: int):
    plans = plan(caption_counts, batch_size=1, captions_per_image=group, covers="images")
    assert sorted(int(batch.images[0]) for batch in plans) == list(range(len(caption_counts)))
    for batch in plans:
        count = caption_counts[batch.images[0]]
        chosen = batch.captions[0].tolist()
        assert len(set(chosen)) == len(chosen) == min(group or count, count)
        assert all(0 <= caption < count for caption in chosen)


def test_the_plan_depends_on_the_seed_alone():
    first, again, other = (plan([5] * 30, seed=seed) for seed in [(0, 1, 2), (0, 1, 2), (0, 1, 3)])
    assert [batch.images.tolist() for batch in first] == [batch.images.tolist() for batch in again]
    assert [batch.images.tolist() for batch in first] != [batch.images.tolist() for batch in other]


def test_a_last_batch_that_is_not_full_is_left_out_unless_it_is_the_only_one():
    assert [len(batch.images) for batch in plan([1] * 10)] == [4, 4]
    assert [len(batch.images) for batch in plan([1] * 3)] == [3]


def test_nothing_is_mirrored_where_mirroring_is_off():
    assert not any(batch.hflipped.any() for batch in plan([1] * 40, hflip=False))
    assert any(batch.hflipped.any() for batch in plan([1] * 40, hflip=True))


def test_a_batch_holds_a_picture_once_with_its_captions(memory_split):
    split = memory_split([["a", "b b"], ["c c c"]], np.array([2**40, 7]))
    features = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)
    source = BatchSource(split, Reading(lambda caption: [len(caption)] * len(caption.split()), ImageInput(), features))
    batch = source[
        BatchPlan(
            np.array([1, 0]),
            [np.array([0]), np.array([1, 0])],
            np.array([True, False]),
            np.zeros((2, 4)),
            np.zeros((2, 7)),
        )
    ]
    assert batch.features.tolist() == [features[1, 1].tolist(), features[0, 0].tolist()]
    assert batch.lengths.tolist() == [3, 2, 1]
    assert batch.image_rows.tolist() == [0, 1, 1]
    assert batch.image_labels.tolist() == [0, 1]  # numbers of the labels 7 and 2**40
    assert batch.text_labels.tolist() == [0, 1, 1]
    assert source.num_classes == 2


def test_a_picture_is_not_mirrored_with_a_caption_that_says_left_or_right(memory_split):
    split = memory_split([["a dog", "On the LEFT, a dog"], ["it leaps upright"], ["right"], ["a cat"]], np.arange(4))
    features = np.array([[[0.0], [1.0]]] * 4, dtype=np.float32)
    drawn = [np.array([0]), np.array([0]), np.array([0]), np.array([0])]
    hflipped = BatchPlan(np.arange(4), drawn, np.array([True, True, True, False]), np.zeros((4, 4)), np.zeros((4, 7)))
    both = BatchPlan(np.array([0]), [np.array([0, 1])], np.array([True]), np.zeros((1, 4)), np.zeros((1, 7)))
    source = BatchSource(split, Reading(lambda caption: [2], ImageInput(), features))
    assert source[hflipped].features[:, 0].tolist() == [1, 1, 0, 0]
    assert source[both].features[:, 0].tolist() == [0]
    source = BatchSource(split, Reading(lambda caption: [2], ImageInput(), features, hflip_sides=True))
    assert source[hflipped].features[:, 0].tolist() == [1, 1, 1, 0]
    assert source[both].features[:, 0].tolist() == [1]


def test_batches_come_in_the_order_of_their_plans(memory_split):
    split = memory_split([["a"]] * 12, np.arange(12))
    source = BatchSource(split, Reading(lambda caption: [2], ImageInput(), np.zeros((12, 2, 3), np.float32)))
    plans = plan(source.caption_counts)
    seen = [batch.image_labels.tolist() for batch in load_batches(source, plans, 0, torch.device("cpu"))]
    assert seen == [batch.images.tolist() for batch in plans]


def test_a_share_of_the_images_is_erased_and_all_are_shifted_as_the_plan_says(memory_split, encode):
    pixels = np.full((32, 32, 3), 200, dtype=np.uint8)
    split = memory_split([["a"]] * 40, np.arange(40), images=[encode(pixels)] * 40)
    image_input = ImageInput(32, 32, mean=[0.5, 0.5, 0.5])
    plans = plan([1] * 40, batch_size=40, hflip=False)

    def images(**settings) -> torch.Tensor:
        return BatchSource(split, Reading(lambda _: [2], image_input, **settings))[plans[0]].images

    plain, erased, shifted = images(), images(erasing=0.5), images(shift=4)
    changed = (erased != plain).flatten(1).any(1)
    assert 10 <= int(changed.sum()) <= 30
    assert set(erased[changed].unique().tolist()) == {128, 200}
    assert torch.equal(images(erasing=0.5), erased)
    assert torch.equal(images(erasing=1.0)[changed], erased[changed])
    assert set(shifted.unique().tolist()) == {0, 200}
    assert 20 < (shifted != plain).flatten(1).any(1).sum() <= 40
