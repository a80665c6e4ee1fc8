from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpl.data.batching import BatchPlan, plan_epoch
from cmpl.data.samplers import identity_balanced, shuffled

# Pictures of each identity, in which an identity may have many more than the others.
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def planned(pictures_each: list[int], **changes) -> tuple[list[BatchPlan], list[int]]:
    """An epoch of P = 3 identities x K = 2 pictures, and the identity of each picture."""
    identities = [identity for identity, count in enumerate(pictures_each) for _ in range(count)]
    settings = {"batch_size": 6, "captions_per_picture": 1, "covers": "pictures", "mirror": True, "seed": (0, 1, 0)}
    settings |= {"identities": identities, "pictures_per_identity": 2, **changes}
    return plan_epoch([1 + picture % 3 for picture in range(len(identities))], **settings), identities


@given(sizes, st.sampled_from(["pictures", "captions"]), st.integers(0, 2**32))
def test_a_batch_holds_p_identities_with_k_different_pictures_or_all_there_are(
    pictures_each: list[int], covers: str, seed: int
):
    plans, identities = planned(pictures_each, covers=covers, seed=(seed,))
    for plan in plans:
        assert len(set(plan.pictures.tolist())) == len(plan.pictures)
        shown = Counter(identities[picture] for picture in plan.pictures)
        assert len(shown) == min(3, len(pictures_each))
        assert all(count == min(2, pictures_each[identity]) for identity, count in shown.items())


@given(sizes, st.integers(0, 2**32))
def test_an_epoch_covers_every_picture_and_repeats_few(pictures_each: list[int], seed: int):
    plans, _ = planned(pictures_each, seed=(seed,))
    drawn = Counter(int(picture) for plan in plans for picture in plan.pictures)
    assert set(drawn) == set(range(sum(pictures_each)))
    if len(pictures_each) >= 3 and max(pictures_each) <= 2:  # one turn each
        assert sum(drawn.values()) < sum(pictures_each) + 6


@given(sizes, st.integers(0, 2**32))
def test_an_epoch_over_captions_reads_every_caption(pictures_each: list[int], seed: int):
    plans, _ = planned(pictures_each, covers="captions", seed=(seed,))
    rows = [zip(plan.pictures, plan.captions, strict=True) for plan in plans]
    drawn = {(int(picture), int(caption)) for row in rows for picture, chosen in row for caption in chosen}
    assert drawn == {(picture, caption) for picture in range(sum(pictures_each)) for caption in range(1 + picture % 3)}


@given(sizes, st.sampled_from(["pictures", "captions"]))
def test_every_epoch_has_as_many_batches_in_another_order(pictures_each: list[int], covers: str):
    epochs = [planned(pictures_each, covers=covers, seed=(0, 1, epoch))[0] for epoch in range(4)]
    assert len({len(plans) for plans in epochs}) == 1
    if len(pictures_each) > 6:
        assert len({tuple(np.concatenate([plan.pictures for plan in plans])) for plans in epochs}) == 4


@given(sizes, st.sampled_from([None, "identities"]), st.integers(1, 5))
def test_the_parts_of_all_processes_are_the_plan_of_one(pictures_each: list[int], sampler: str | None, processes: int):
    plans, _ = planned(pictures_each, **({} if sampler else {"identities": None}))
    for plan in plans:
        parts = [plan.shard(rank, processes) for rank in range(processes)]
        sizes_of_parts = [len(part.pictures) for part in parts]
        assert max(sizes_of_parts) - min(sizes_of_parts) <= 1
        for field in ("pictures", "mirrored", "crops"):
            assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(plan, field))
        assert [chosen.tolist() for part in parts for chosen in part.captions] == [
            chosen.tolist() for chosen in plan.captions
        ]


def test_one_large_identity_does_not_stop_the_others_from_being_drawn():
    plans, _ = planned([40, 1, 1, 1, 2])
    assert len(plans) == 20
    assert {picture for plan in plans for picture in plan.pictures.tolist()} == set(range(45))


@pytest.mark.parametrize("sampler", ["shuffled", "identities"])
def test_the_same_generator_gives_the_same_batches(sampler: str):
    def batches() -> list[list[int]]:
        random = np.random.default_rng([0, 1, 2])
        if sampler == "shuffled":
            return [batch.tolist() for batch in shuffled(30, 4, random)]
        identities = [picture // 5 for picture in range(30)]
        return [batch.tolist() for batch in identity_balanced(identities, range(30), 2, 2, random)]

    assert batches() == batches()
