from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmpl.data.batching import BatchPlan, BatchSource, load_batches, plan_epoch
from cmpl.data.transforms import PictureInput

counts = st.lists(st.integers(1, 7), min_size=1, max_size=40)


def plan(caption_counts, **changes):
    settings = {"batch_size": 4, "captions_per_picture": 1, "covers": "captions", "mirror": True, "seed": (0, 1, 0)}
    return plan_epoch(caption_counts, **{**settings, **changes})


def drawn(plans: list[BatchPlan]) -> Counter[tuple[int, int]]:
    rows = [zip(batch.pictures, batch.captions, strict=True) for batch in plans]
    return Counter((int(picture), int(caption)) for row in rows for picture, chosen in row for caption in chosen)


@given(counts, st.integers(0, 5))
def test_an_epoch_over_captions_reads_each_exactly_once(caption_counts: list[int], group: int):
    everything = {(picture, caption) for picture, count in enumerate(caption_counts) for caption in range(count)}
    plans = plan(caption_counts, batch_size=1, captions_per_picture=group)
    assert drawn(plans) == Counter(everything)


@given(counts, st.integers(0, 5))
def test_an_epoch_over_pictures_draws_each_once_with_captions_of_its_own(caption_counts: list[int], group: int):
    plans = plan(caption_counts, batch_size=1, captions_per_picture=group, covers="pictures")
    assert sorted(int(batch.pictures[0]) for batch in plans) == list(range(len(caption_counts)))
    for batch in plans:
        count = caption_counts[batch.pictures[0]]
        chosen = batch.captions[0].tolist()
        assert len(set(chosen)) == len(chosen) == min(group or count, count)
        assert all(0 <= caption < count for caption in chosen)


def test_the_plan_depends_on_the_seed_alone():
    first, again, other = (plan([5] * 30, seed=seed) for seed in [(0, 1, 2), (0, 1, 2), (0, 1, 3)])
    assert [batch.pictures.tolist() for batch in first] == [batch.pictures.tolist() for batch in again]
    assert [batch.pictures.tolist() for batch in first] != [batch.pictures.tolist() for batch in other]


def test_a_last_batch_that_is_not_full_is_left_out_unless_it_is_the_only_one():
    assert [len(batch.pictures) for batch in plan([1] * 10)] == [4, 4]
    assert [len(batch.pictures) for batch in plan([1] * 3)] == [3]


def test_nothing_is_mirrored_where_mirroring_is_off():
    assert not any(batch.mirrored.any() for batch in plan([1] * 40, mirror=False))
    assert any(batch.mirrored.any() for batch in plan([1] * 40, mirror=True))


def test_a_batch_holds_a_picture_once_with_its_captions(memory_split):
    split = memory_split([["a", "b b"], ["c c c"]], np.array([2**40, 7]))
    features = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)
    source = BatchSource(
        split, lambda caption: [len(caption)] * len(caption.split()), PictureInput(), features=features
    )
    batch = source[
        BatchPlan(np.array([1, 0]), [np.array([0]), np.array([1, 0])], np.array([True, False]), np.zeros((2, 4)))
    ]
    assert batch.features.tolist() == [features[1, 1].tolist(), features[0, 0].tolist()]
    assert batch.lengths.tolist() == [3, 2, 1]
    assert batch.picture_rows.tolist() == [0, 1, 1]
    assert batch.image_labels.tolist() == [7, 2**40]
    assert batch.text_labels.tolist() == [7, 2**40, 2**40]
    assert batch.classes.tolist() == [0, 1, 1]
    assert source.num_classes == 2


def test_a_picture_is_not_mirrored_with_a_caption_that_says_left_or_right(memory_split):
    split = memory_split([["a dog", "On the LEFT, a dog"], ["it leaps upright"], ["right"], ["a cat"]], np.arange(4))
    features = np.array([[[0.0], [1.0]]] * 4, dtype=np.float32)
    drawn = [np.array([0]), np.array([0]), np.array([0]), np.array([0])]
    mirrored = BatchPlan(np.arange(4), drawn, np.array([True, True, True, False]), np.zeros((4, 4)))
    both = BatchPlan(np.array([0]), [np.array([0, 1])], np.array([True]), np.zeros((1, 4)))
    source = BatchSource(split, lambda caption: [2], PictureInput(), features=features)
    assert source[mirrored].features[:, 0].tolist() == [1, 1, 0, 0]
    assert source[both].features[:, 0].tolist() == [0]
    source = BatchSource(split, lambda caption: [2], PictureInput(), features=features, mirror_sides=True)
    assert source[mirrored].features[:, 0].tolist() == [1, 1, 1, 0]
    assert source[both].features[:, 0].tolist() == [1]


def test_batches_come_in_the_order_of_their_plans(memory_split):
    split = memory_split([["a"]] * 12, np.arange(12))
    source = BatchSource(split, lambda caption: [2], PictureInput(), features=np.zeros((12, 2, 3), np.float32))
    plans = plan(source.caption_counts)
    seen = [batch.image_labels.tolist() for batch in load_batches(source, plans, 0, torch.device("cpu"))]
    assert seen == [batch.pictures.tolist() for batch in plans]
