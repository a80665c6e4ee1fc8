"""Karpathy's JSON: everything in it becomes a record, everything else a sentence that says where it is wrong."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crosspair.data.readers.karpathy import read_karpathy
from crosspair.data.records import Record
from crosspair.errors import UserError
from crosspair.registry import READERS

IMAGE = {
    "imgid": 7,
    "filename": "a b.jpg",
    "split": "train",
    "sentids": [0],
    "sentences": [
        {"raw": "A dog runs .", "tokens": ["a", "dog", "runs"], "imgid": 7, "sentid": 0},
        {"raw": "Zwei Hunde.", "tokens": ["zwei", "hunde"], "imgid": 7, "sentid": 1},
    ],
}
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SENTENCES = st.lists(st.fixed_dictionaries({"raw": WORDS, "tokens": st.lists(WORDS, max_size=4)}), max_size=6)
IMAGES = st.lists(
    st.fixed_dictionaries(
        {
            "imgid": st.integers(),
            "filename": st.from_regex(r"[a-z0-9_ ]{1,8}\.(jpg|png)", fullmatch=True),
            "split": st.sampled_from(["train", "val", "test", "restval"]),
            "sentences": SENTENCES,
        },
        optional={"filepath": st.sampled_from(["train2014", "a/b", ""])},
    ),
    max_size=5,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(folder: Path, content: Any) -> list[Record]:
    annotations = folder / "dataset.json"
    annotations.write_text(json.dumps(content))
    return list(read_karpathy(annotations, folder))


def changed(**fields: Any) -> dict[str, Any]:
    image = copy.deepcopy(IMAGE)
    image.update(fields)
    return {"images": [image]}


def without(field: str) -> dict[str, Any]:
    return {"images": [{key: value for key, value in IMAGE.items() if key != field}]}


def test_an_entry_becomes_a_record_with_all_its_captions(tmp_path):
    assert read(tmp_path, changed()) == [
        Record(
            image_id="a b.jpg",
            image=tmp_path / "a b.jpg",
            label=7,
            captions=("A dog runs .", "Zwei Hunde."),
            split="train",
            tokens=(("a", "dog", "runs"), ("zwei", "hunde")),
        )
    ]


def test_a_picture_of_coco_lies_in_its_folder(tmp_path):
    (record,) = read(tmp_path, changed(filepath="val2014"))
    assert record.image_id == "val2014/a b.jpg"
    assert record.image == tmp_path / "val2014" / "a b.jpg"


@pytest.mark.parametrize("split", ["train", "val", "test", "restval"])
def test_splits_stay_as_given(tmp_path, split):
    assert read(tmp_path, changed(split=split))[0].split == split


def test_the_three_names_of_the_schema_are_known():
    assert {"flickr8k", "flickr30k", "coco"} <= set(READERS.names())


@in_one_folder
@given(images=IMAGES)
def test_whatever_the_schema_allows_is_read_in_its_order(tmp_path, images):
    records = read(tmp_path, {"images": images})
    assert [record.label for record in records] == [image["imgid"] for image in images]
    assert [list(record.captions) for record in records] == [[s["raw"] for s in i["sentences"]] for i in images]
    assert [[list(words) for words in record.tokens or ()] for record in records] == [
        [s["tokens"] for s in i["sentences"]] for i in images
    ]
    assert all(record.image.is_relative_to(tmp_path) for record in records)


@in_one_folder
@given(content=JSON, where=st.sampled_from(["file", "images", "image", "sentence", *IMAGE]))
def test_any_other_json_is_one_sentence(tmp_path, content, where):
    image = copy.deepcopy(IMAGE)
    if where == "sentence":
        image["sentences"][1] = content
    elif where in IMAGE:
        image[where] = content
    data = {"file": content, "images": {"images": content}, "image": {"images": [content]}}
    records, problem = [], "dataset.json is not Karpathy's JSON: "
    try:
        records = read(tmp_path, data.get(where, {"images": [image]}))
    except UserError as error:
        problem = str(error)
    assert "\n" not in problem
    assert "dataset.json is not Karpathy's JSON: " in problem
    assert all(record.image.is_relative_to(tmp_path) for record in records)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "found a list, not an object with a list of images"),
        ({"annotations": [], "info": {}}, "found an object with annotations, info, not"),
        ({"images": {}}, "not an object with a list of images"),
        ({"images": ["a.jpg"]}, "image 0 is a string, not an object"),
        (without("sentences"), r"image 0 \('a b.jpg'\) has no 'sentences'"),
        (without("filename"), "image 0 has no 'filename'"),
        (without("imgid"), "has no 'imgid'"),
        (without("split"), "has no 'split'"),
        (changed(imgid="7"), "has a string as 'imgid', not a whole number"),
        (changed(imgid=True), "has a truth value as 'imgid', not a whole number"),
        (changed(imgid=1.5), "has a decimal number as 'imgid'"),
        (changed(split="Train"), "is in split 'Train', not in one of train, val, test, restval"),
        (changed(sentences=[{"raw": "A dog."}]), r"sentence 0 of image 0 \('a b.jpg'\) has no 'tokens'"),
        (changed(sentences=[{"raw": 5, "tokens": []}]), "has a whole number as 'raw', not a string"),
        (changed(sentences=[{"raw": "A dog.", "tokens": ["a", 5]}]), "has 'tokens' that are not strings"),
        (changed(filename=""), "has an empty 'filename'"),
    ],
)
def test_another_schema_says_where_it_differs(tmp_path, content, problem):
    with pytest.raises(UserError, match=problem):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"no json", "Expecting value"),
        (b'{"images": [', "Expecting value"),
        (b"\xff\xfe", "can't decode byte"),
        (b"[" * 100_000, "too deeply nested"),
        (b"[" + b"9" * 5000 + b"]", "Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_json_says_so(tmp_path, text, problem):
    (tmp_path / "dataset.json").write_bytes(text)
    with pytest.raises(UserError, match=rf"dataset\.json is not JSON \(.*{problem}.*\); expected Karpathy's"):
        read_karpathy(tmp_path / "dataset.json", tmp_path)


@pytest.mark.parametrize("path", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "..\\x.jpg", "a\0b.jpg"])
@pytest.mark.parametrize("field", ["filename", "filepath"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, path, field):
    with pytest.raises(UserError, match="leads out of the folder of pictures"):
        read(tmp_path, changed(**{field: path}))


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json does not exist; expected Karpathy's dataset_flickr8k\.json"):
        read_karpathy(tmp_path / "none.json", tmp_path)
    with pytest.raises(UserError, match="is a folder; expected"):
        read_karpathy(tmp_path, tmp_path)
    with pytest.raises(UserError, match="none is not a folder; expected --images"):
        read_karpathy(tmp_path / "none.json", tmp_path / "none")


def test_a_wrong_entry_is_found_before_the_first_record_is_used(tmp_path):
    content = {"images": [IMAGE, {}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="image 1 has no 'split'"):
        read_karpathy(tmp_path / "dataset.json", tmp_path)


def test_cocos_own_numbers_of_captions_are_kept(tmp_path):
    assert read(tmp_path, changed(cocoid=391895))[0].caption_ids == (0, 1)
    assert read(tmp_path, changed())[0].caption_ids is None
    other = changed(cocoid=60623, imgid=8, filename="b.jpg")["images"]
    for damaged in (None, "1", 2**63, -1, 1.5, True):
        other[0]["sentences"][1]["sentid"] = damaged
        content = {"images": [*changed(cocoid=391895)["images"], *other]}
        assert [record.caption_ids for record in read(tmp_path, content)] == [None, None]
