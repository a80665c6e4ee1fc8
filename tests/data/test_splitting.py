"""Drawn splits: no label in two of them, shares as near as labels allow, the same for the same seed on any machine."""

import operator
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crosspair.data import splitting
from crosspair.data.records import Record
from crosspair.data.splitting import SPLITS, Shares, with_splits
from crosspair.errors import UserError

SHARES = Shares(0.8, 0.1, 0.1)


def records(labels: list[int], split: str = "") -> list[Record]:
    return [Record(str(number), b"", label, ("a dog",), split) for number, label in enumerate(labels)]


def drawn(labels: list[int], seed: int = 0, shares: Shares = SHARES) -> list[Record]:
    return list(with_splits(lambda: iter(records(labels)), shares, seed))


@given(st.lists(st.integers(0, 30), min_size=20, max_size=200), st.integers())
def test_every_picture_is_in_one_split_and_every_label_too(labels, seed):
    assume(len(set(labels)) >= 3)
    result = drawn(labels, seed)
    assert [record.image_id for record in result] == [str(number) for number in range(len(labels))]
    splits: dict[int, set[str]] = {}
    for record in result:
        splits.setdefault(record.label, set()).add(record.split)
    assert all(len(names) == 1 for names in splits.values())
    assert set.union(*splits.values()) == {"train", "val", "test"}


@given(st.integers(20, 500), st.integers())
def test_pictures_with_labels_of_their_own_are_shared_exactly(count, seed):
    counts = Counter(record.split for record in drawn(list(range(count)), seed))
    assert abs(counts["val"] - count / 10) <= 1
    assert abs(counts["test"] - count / 10) <= 1


def draw_splits(images: dict[int, int], shares: Shares, seed: int) -> dict[int, str]:
    """The split of each label, from how many pictures have it."""
    labels, counts = np.array(list(images)), np.array(list(images.values()))
    chosen = splitting.draw_splits(labels, counts, shares, seed)
    return {label: SPLITS[place] for label, place in zip(images, chosen, strict=True)}


def test_the_seed_alone_decides():
    labels = list(range(100))
    assert drawn(labels, 1) == drawn(labels, 1)
    assert drawn(labels, 1) != drawn(labels, 2)


def test_the_draw_is_the_same_everywhere():
    chosen = draw_splits(Counter(range(20)), SHARES, seed=0)
    assert {name: sorted(label for label in chosen if chosen[label] == name) for name in ("val", "test")} == {
        "val": [5, 11],
        "test": [1, 13],
    }


def test_every_split_is_filled_even_when_one_label_has_nearly_all_pictures():
    for seed in range(50):
        assert set(draw_splits(Counter({0: 18, 2: 1, 3: 1}), SHARES, seed).values()) == {"train", "val", "test"}


def test_shares_are_kept_as_nearly_as_whole_labels_allow():
    chosen = draw_splits(Counter(dict.fromkeys(range(10), 10)), Shares(0.7, 0.16, 0.14), seed=0)
    assert Counter(chosen.values()) == {"train": 7, "val": 2, "test": 1}


def test_a_share_of_0_leaves_a_split_out():
    assert {record.split for record in drawn(list(range(20)), shares=Shares(0.9, 0.1, 0))} == {"train", "val"}
    assert {record.split for record in drawn([1, 1], shares=Shares(1, 0, 0))} == {"train"}


@pytest.mark.parametrize(
    "text", ["", "0.8", "0.8,0.2", "0.8,0.1,0.2", "a,b,c", "1.2,-0.1,-0.1", "0,0.5,0.5", "nan,0,0", "1,0,0,0"]
)
def test_shares_that_are_not_three_parts_of_1_are_refused(text):
    with pytest.raises(UserError, match=r"^found --split-shares .*as in --split-shares 0\.8,0\.1,0\.1"):
        Shares.parse(text)


def test_shares_are_read():
    assert Shares.parse("0.7, 0.2,0.1") == Shares(0.7, 0.2, 0.1)


def test_splits_are_not_drawn_where_the_source_has_them():
    with pytest.raises(UserError, match=r"has splits of its own \(test is one\); leave --split-shares out"):
        with_splits(lambda: iter(records([1, 2], "test")), SHARES, 0)
    assert list(with_splits(lambda: iter(records([1, 2], "test")), None, 0)) == records([1, 2], "test")


@given(st.lists(st.integers(0, 30), min_size=20, max_size=100), st.integers())
def test_a_source_that_lacks_val_alone_has_it_drawn_from_train_by_label_and_keeps_its_test(labels, seed):
    assume(len(set(labels)) >= 2)
    own = records(labels, "train") + records([100, 101, 101], "test")
    result = with_splits(lambda: iter(own), Shares(0.8, 0.2, 0), seed)
    assert operator.length_hint(result) == len(own)
    result = list(result)
    assert [record.label for record in result] == [record.label for record in own]
    assert [record.split for record in result[-3:]] == ["test"] * 3
    train, val = ({record.label for record in result if record.split == name} for name in ("train", "val"))
    assert train
    assert val
    assert not train & val
    assert result[:-3] == drawn(labels, seed, Shares(0.8, 0.2, 0))


def test_cocos_restval_stays_as_it_is_while_val_is_drawn():
    own = records([1, 2, 3, 4], "train") + records([5, 6], "restval") + records([7], "test")
    found = [record.split for record in with_splits(lambda: iter(own), Shares(0.75, 0.25, 0), 0)]
    assert sorted(found[:4]) == ["train", "train", "train", "val"]
    assert found[4:] == ["restval", "restval", "test"]


def test_val_is_not_drawn_where_the_source_has_it_or_has_no_train():
    with pytest.raises(
        UserError, match=r"\(val is one\); leave --split-shares out, or if it lacks val alone, draw val"
    ):
        with_splits(lambda: iter(records([1, 2], "train") + records([3], "val")), Shares(0.9, 0.1, 0), 0)
    with pytest.raises(UserError, match="has no split train"):
        with_splits(lambda: iter(records([1, 2], "test")), Shares(0.9, 0.1, 0), 0)


def test_a_source_without_splits_needs_the_option():
    with pytest.raises(UserError, match=r"the source has no splits; add --split-shares 0\.8,0\.1,0\.1"):
        list(with_splits(lambda: iter(records([1, 2])), None, 0))


@pytest.mark.parametrize("labels", [[1], [1, 1, 1, 2], [1, 2]])
def test_too_few_labels_are_an_error(labels):
    with pytest.raises(UserError, match="too few to fill train, test and val"):
        drawn(labels)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_source_is_read_twice_only_when_its_records_are_not_in_memory(in_memory):
    reads = 0

    def read():
        nonlocal reads
        reads += 1
        source = records(list(range(30)))
        return source if in_memory else (record for record in source)

    result = with_splits(read, SHARES, 0)
    assert operator.length_hint(result) == 30
    assert list(result) == drawn(list(range(30)))
    assert reads == (1 if in_memory else 2)
