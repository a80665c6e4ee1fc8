"""Person search in the schemas of its three data sets: numbers of persons become labels, wrong entries are named."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crosspair.errors import UserError
from crosspair.registry import READERS

CUHK = {
    "split": "train",
    "captions": ["A man with a bag.", "He wears a coat."],
    "file_path": "CUHK01/0363004.png",
    "processed_tokens": [["a", "man", "with", "a", "bag"], ["he", "wears", "a", "coat"]],
    "id": 1,
}
ICFG = {
    "split": "TRAIN",
    "captions": ["The woman wears a white shirt."],
    "file_path": "train/0000/0000_000_01_0303morning_0008_0_ex.jpg",
    "processed_tokens": [["the", "woman", "wears", "a", "white", "shirt"]],
    "id": 0,
}
RSTP = {"id": 0, "img_path": "0000_c14_0031.jpg", "captions": ["A boy runs.", "A boy with a cap."], "split": "train"}


def read(folder: Path, name: str, content: Any, file: str = "annotations.json"):
    path = folder / file
    path.write_text(json.dumps(content))
    return list(READERS.get(name)(path, folder))


def test_labels_of_cuhk_pedes_count_from_0(tmp_path):
    first, last, other = read(
        tmp_path,
        "cuhk-pedes",
        [CUHK, {**CUHK, "id": 11003, "file_path": "b.png"}, {**CUHK, "id": 12003, "split": "test", "file_path": "c"}],
    )
    assert (first.label, last.label, other.label) == (0, 11002, 12002)
    assert first.image_id == "CUHK01/0363004.png"
    assert first.image == tmp_path / "CUHK01/0363004.png"
    assert first.captions == ("A man with a bag.", "He wears a coat.")
    assert first.tokens == (("a", "man", "with", "a", "bag"), ("he", "wears", "a", "coat"))
    assert (first.split, other.split) == ("train", "test")


def test_splits_of_icfg_pedes_come_in_any_case(tmp_path):
    train, test = read(tmp_path, "icfg-pedes", [ICFG, {**ICFG, "split": "Test", "file_path": "b.jpg", "id": 3102}])
    assert (train.split, train.label, test.split, test.label) == ("train", 0, "test", 3102)


def test_rstpreid_has_no_tokens(tmp_path):
    (record,) = read(tmp_path, "rstpreid", [RSTP])
    assert (record.image_id, record.label, record.tokens) == ("0000_c14_0031.jpg", 0, None)
    assert record.captions == ("A boy runs.", "A boy with a cap.")


@pytest.mark.parametrize(
    ("name", "file", "entry"),
    [
        ("cuhk-pedes", "reid_raw.json", CUHK),
        ("icfg-pedes", "ICFG-PEDES.json", ICFG),
        ("icfg-pedes", "ICFG_PEDES.json", ICFG),
        ("rstpreid", "data_captions.json", RSTP),
    ],
)
def test_the_folder_of_the_release_is_enough(tmp_path, name, file, entry):
    (tmp_path / file).write_text(json.dumps([entry]))
    assert len(list(READERS.get(name)(tmp_path, tmp_path))) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"split": None}, r"entry 0 \('CUHK01/0363004.png'\) has null as 'split', not a string"),
        ({"split": "query"}, "is in split 'query', not in one of train, val, test"),
        ({"id": "1"}, "has a string as 'id', not a whole number"),
        ({"id": True}, "has a truth value as 'id'"),
        ({"captions": "A man."}, "has a string as 'captions', not a list"),
        ({"captions": [1, 2]}, "has 'captions' that are not strings"),
        ({"processed_tokens": [["a"]]}, "has 2 captions, but 'processed_tokens' of 1"),
        (
            {"processed_tokens": [["a"], "b"]},
            "entry 0 .* has a string in 'processed_tokens', not a list of words for each",
        ),
        ({"file_path": "../secret.png"}, "leads out of the folder"),
        ({"file_path": 3}, "entry 0 has a whole number as 'file_path'"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, change, problem):
    with pytest.raises(UserError, match=problem) as caught:
        read(tmp_path, "cuhk-pedes", [{**CUHK, **change}])
    assert str(caught.value).endswith("expected reid_raw.json as its authors hand it out")


def test_the_file_without_splits_is_refused(tmp_path):
    entry = {key: value for key, value in CUHK.items() if key != "split"}
    with pytest.raises(UserError, match=r"has no 'split'; expected reid_raw\.json"):
        read(tmp_path, "cuhk-pedes", [entry], "caption_all.json")


@pytest.mark.parametrize("content", [{}, {"images": []}, 3, None, [3], [None]])
def test_another_shape_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"not a list of pictures|not an object"):
        read(tmp_path, "icfg-pedes", content)


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; expected ICFG-PEDES.json or ICFG_PEDES.json"):
        READERS.get("icfg-pedes")(tmp_path, tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(sorted(CUHK)), VALUES)
def test_an_entry_of_any_shape_is_a_record_or_a_sentence(tmp_path, field, value):
    with contextlib.suppress(UserError):
        assert len(read(tmp_path, "cuhk-pedes", [CUHK, {**CUHK, field: value}])) == 2
