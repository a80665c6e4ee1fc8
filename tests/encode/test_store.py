"""The store of vectors: whatever a killed process leaves of it, what was whole is taken over."""

import numpy as np
import pytest

from crosspair.encode.store import VectorStore, npy_header

SETTINGS = {"model": "a checksum"}


@pytest.fixture
def groups() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((size, 2, 3), dtype=np.float32) for size in (4, 1, 3)]


@pytest.fixture
def path(tmp_path, groups):
    """A store of three groups that was not finished."""
    store = VectorStore(tmp_path / "vectors", (2, 3), SETTINGS, npy_header((8, 2, 3)))
    for number, group in enumerate(groups):
        store.append(group, [{"group": number}] * len(group))
    store.close()
    return tmp_path / "vectors"


def opened(path, settings=SETTINGS, rows=8) -> VectorStore:
    return VectorStore(path, (2, 3), settings, npy_header((rows, 2, 3)))


def test_what_was_appended_is_there_when_it_is_opened_again(path, groups):
    store = opened(path)
    np.testing.assert_array_equal(store.vectors(), np.concatenate(groups))
    assert [row["group"] for row in store.rows] == [0] * 4 + [1] + [2] * 3
    store.finish(path.with_suffix(".npy"))
    np.testing.assert_array_equal(np.load(path.with_suffix(".npy")), np.concatenate(groups))
    assert [each.name for each in path.parent.iterdir()] == ["vectors.npy"]


@pytest.mark.parametrize("file", ["vectors", "vectors.jsonl"])
def test_cut_off_anywhere_whole_groups_stay_and_the_rest_is_made_anew(path, groups, file):
    victim = path.with_name(file)
    whole = {each: each.read_bytes() for each in (path, path.with_name("vectors.jsonl"))}
    for size in range(0, len(whole[victim]), 7):
        for each, data in whole.items():
            each.write_bytes(data)
        victim.write_bytes(whole[victim][:size])
        store = opened(path)
        assert store.count in (0, 4, 5)
        for number in range({0: 0, 4: 1, 5: 2}[store.count], 3):
            store.append(groups[number], [{"group": number}] * len(groups[number]))
        store.close()
        assert {each: each.read_bytes() for each in whole} == whole


def test_a_damaged_vector_ends_what_is_taken_over(path):
    data = bytearray(path.read_bytes())
    data[len(npy_header((8, 2, 3))) + 4 * 24 + 3] ^= 1  # in the second group
    path.write_bytes(data)
    assert opened(path).count == 4


@pytest.mark.parametrize("other", [{"settings": {"model": "another"}}, {"rows": 9}])
def test_what_was_made_with_other_settings_is_thrown_away(path, other):
    store = opened(path, **other)
    assert (store.count, store.rows) == (0, [])
    assert store.vectors().shape == (0, 2, 3)
