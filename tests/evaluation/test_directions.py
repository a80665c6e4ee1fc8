"""One direction alone, and galleries with items that nothing matches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair import UserError, evaluate_retrieval
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN
from crosspair.evaluation.ranking import DIRECTIONS
from crosspair.evaluation.results import read_result, write_result
from crosspair.evaluation.uncertainty import intervals_of


@st.composite
def retrieval_with_distractors(draw):
    """Whole numbers with ties; some labels are on one side alone, at least one is on both."""
    labels = np.array([0, *draw(st.lists(st.integers(0, 8), max_size=25))])
    text_labels = np.array([0, *draw(st.lists(st.integers(4, 12), max_size=40))])
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    p, q = random.permutation(len(labels)), random.permutation(len(text_labels))
    images, texts = random.integers(-2, 3, (len(labels), 3)), random.integers(-2, 3, (len(text_labels), 3))
    return images.astype(float), texts.astype(float), labels[p], text_labels[q]


@given(retrieval_with_distractors())
@settings(deadline=None, max_examples=100)
def test_distractors_are_in_every_gallery_and_are_no_queries(full_sort, retrieval):
    images, texts, labels, text_labels = retrieval
    result = evaluate_retrieval(*retrieval, metric="euclidean", distractors=True)
    scores = -((images[:, None] - texts[None]) ** 2).sum(2)
    relevant = labels[:, None] == text_labels[None]
    for direction, s, r in ((result.image_to_text, scores, relevant), (result.text_to_image, scores.T, relevant.T)):
        queries = np.flatnonzero(r.any(1))
        assert direction.ranks.queries.tolist() == queries.tolist()
        expected = [full_sort(s[query], r[query]) for query in queries]
        assert direction.ranks.first.tolist() == [query.first for query in expected]
        assert direction.ranks.optimistic.tolist() == [query.optimistic for query in expected]
        assert direction.values("mAP") == pytest.approx([query.average_precision for query in expected])
    assert result.distractors == (int((~relevant.any(1)).sum()), int((~relevant.any(0)).sum()))


@given(retrieval_with_distractors(), st.sampled_from(DIRECTIONS))
@settings(deadline=None, max_examples=40)
def test_one_direction_alone_is_that_of_both(retrieval, direction):
    both = evaluate_retrieval(*retrieval, distractors=True)
    one = evaluate_retrieval(*retrieval, distractors=True, directions=(direction,))
    assert list(one.directions) == [direction]
    assert one.rsum is None
    assert one.to_dict()[direction] == both.to_dict()[direction]
    assert set(one.to_dict()) - {"ties", "distractors"} == {direction}
    for name in ("ranks", "offsets", "queries", "optimistic"):
        ours, theirs = (getattr(result.directions[direction].ranks, name) for result in (one, both))
        np.testing.assert_array_equal(ours, theirs)


def test_the_table_and_the_dictionary_tell_of_distractors():
    result = evaluate_retrieval(np.eye(4), np.eye(4)[:3], np.arange(4), np.arange(3), distractors=True)
    assert "in the gallery alone, as nothing matches them: 1 image" in result.to_table()
    assert result.to_dict()["distractors"] == {"images": 1}
    one = evaluate_retrieval(
        np.eye(4), np.eye(4)[:3], np.arange(4), np.arange(3), distractors=True, directions=("text_to_image",)
    )
    assert one.to_table().splitlines()[1:] == [
        "text to image   100.0   100.0   100.0   100.0            1        1.0",
        "4 images, 3 texts, cosine; ties against the model",
        "in the gallery alone, as nothing matches them: 1 image",
    ]


def test_what_matches_nothing_is_refused_with_the_option_that_keeps_it():
    data = np.eye(4), np.eye(4), np.arange(4), np.array([0, 1, 2, 9])
    with pytest.raises(UserError, match=r"row 3 of image_embeddings with label 3 matches no row .* distractors=True"):
        evaluate_retrieval(*data)
    assert evaluate_retrieval(*data, distractors=True).distractors == (1, 1)
    with pytest.raises(UserError, match="no row of image_embeddings matches a row of text_embeddings"):
        evaluate_retrieval(np.eye(2), np.eye(2), np.arange(2), np.arange(2) + 5, distractors=True)


@pytest.mark.parametrize("directions", [(), "text_to_image", ("t2i",), ("image_to_text", "both"), None, 3])
def test_directions_are_a_tuple_of_one_or_both(directions):
    with pytest.raises(UserError, match=r"directions are .*; expected a tuple of 'image_to_text' and 'text_to_image'"):
        evaluate_retrieval(np.eye(2), np.eye(2), np.arange(2), np.arange(2), directions=directions)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_result_of_one_direction_with_distractors_is_read_as_it_was_written(tmp_path, direction):
    random = np.random.default_rng(0)
    data = Embeddings.checked(
        random.normal(size=(30, 4)), random.normal(size=(50, 4)), np.arange(30), np.arange(50) % 40 + 10
    )
    found = PLAIN.evaluate(data, directions=(direction,), distractors=True)
    intervals = intervals_of(found)
    write_result(tmp_path / "result.json", found, intervals, {})
    stored = read_result(tmp_path / "result.json").evaluation
    assert list(stored.result.directions) == [direction]
    ours, theirs = found.result.directions[direction].ranks, stored.result.directions[direction].ranks
    for name in ("ranks", "offsets", "queries", "optimistic", "gallery_size"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_array_equal(found.query_labels[direction], stored.query_labels[direction])
    assert intervals_of(stored).bounds == intervals.bounds
    assert direction.replace("_", " ") in intervals.to_table(found)
