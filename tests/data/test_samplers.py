from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.data.plans import BatchPlan, plan_epoch
from crosspair.data.samplers import label_balanced, shuffled

# Pictures of each label, in which a label may have many more than the others.
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def planned(images_each: list[int], **changes) -> tuple[list[BatchPlan], list[int]]:
    """An epoch of P = 3 labels x K = 2 pictures, and the label of each picture."""
    labels = [label for label, count in enumerate(images_each) for _ in range(count)]
    settings = {"batch_size": 6, "captions_per_image": 1, "covers": "images", "hflip": True, "seed": (0, 1, 0)}
    settings |= {"labels": labels, "sampler": partial(label_balanced, images_per_label=2), **changes}
    return plan_epoch([1 + image % 3 for image in range(len(labels))], **settings), labels


@given(sizes, st.sampled_from(["images", "captions"]), st.integers(0, 2**32))
def test_a_batch_holds_p_labels_with_k_different_pictures_or_all_there_are(
    images_each: list[int], covers: str, seed: int
):
    plans, labels = planned(images_each, covers=covers, seed=(seed,))
    for plan in plans:
        assert len(set(plan.images.tolist())) == len(plan.images)
        shown = Counter(labels[image] for image in plan.images)
        assert len(shown) == min(3, len(images_each))
        assert all(count == min(2, images_each[label]) for label, count in shown.items())


@given(sizes, st.integers(0, 2**32))
def test_an_epoch_covers_every_picture_and_repeats_few(images_each: list[int], seed: int):
    plans, _ = planned(images_each, seed=(seed,))
    drawn = Counter(int(image) for plan in plans for image in plan.images)
    assert set(drawn) == set(range(sum(images_each)))
    if len(images_each) >= 3 and max(images_each) <= 2:  # one turn each
        assert sum(drawn.values()) < sum(images_each) + 6


@given(sizes, st.integers(0, 2**32))
def test_an_epoch_over_captions_reads_every_caption(images_each: list[int], seed: int):
    plans, _ = planned(images_each, covers="captions", seed=(seed,))
    rows = [zip(plan.images, plan.captions, strict=True) for plan in plans]
    drawn = {(int(image), int(caption)) for row in rows for image, chosen in row for caption in chosen}
    assert drawn == {(image, caption) for image in range(sum(images_each)) for caption in range(1 + image % 3)}


@given(sizes, st.sampled_from(["images", "captions"]))
def test_every_epoch_has_as_many_batches_in_another_order(images_each: list[int], covers: str):
    epochs = [planned(images_each, covers=covers, seed=(0, 1, epoch))[0] for epoch in range(4)]
    assert len({len(plans) for plans in epochs}) == 1
    if len(images_each) > 6:
        assert len({tuple(np.concatenate([plan.images for plan in plans])) for plans in epochs}) == 4


@given(sizes, st.sampled_from([shuffled, None]), st.integers(1, 5))
def test_the_parts_of_all_processes_are_the_plan_of_one(images_each: list[int], sampler, processes: int):
    plans, _ = planned(images_each, **({"sampler": sampler} if sampler else {}))
    for plan in plans:
        parts = [plan.shard(rank, processes) for rank in range(processes)]
        sizes_of_parts = [len(part.images) for part in parts]
        assert max(sizes_of_parts) - min(sizes_of_parts) <= 1
        for field in ("images", "hflipped", "crops", "changes"):
            assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(plan, field))
        assert [chosen.tolist() for part in parts for chosen in part.captions] == [
            chosen.tolist() for chosen in plan.captions
        ]


def test_one_large_label_does_not_stop_the_others_from_being_drawn():
    plans, _ = planned([40, 1, 1, 1, 2])
    assert len(plans) == 20
    assert {image for plan in plans for image in plan.images.tolist()} == set(range(45))


@pytest.mark.parametrize("sampler", ["shuffled", "labels"])
def test_the_same_generator_gives_the_same_batches(sampler: str):
    def batches() -> list[list[int]]:
        random = np.random.default_rng([0, 1, 2])
        if sampler == "shuffled":
            return [batch.tolist() for batch in shuffled(range(30), 4, random)]
        labels = [image // 5 for image in range(30)]
        return [batch.tolist() for batch in label_balanced(labels, 4, random, range(30), images_per_label=2)]

    assert batches() == batches()
