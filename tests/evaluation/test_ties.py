"""What depends on ties is told exactly, and identical rows are told of."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings

from crosspair import evaluate_retrieval
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.identical import find_identical_rows
from crosspair.evaluation.inputs import warn_once
from crosspair.evaluation.protocols import find_protocol
from tests.fixtures.rankings import tied_retrieval


@pytest.fixture(autouse=True)
def _every_warning_is_new():
    warn_once.cache_clear()


@given(tied_retrieval())
@settings(deadline=None, max_examples=100)
def test_recall_lies_between_those_of_the_worst_and_the_best_order_of_ties_which_are_told(retrieval):
    images, texts, labels, text_labels = retrieval
    result = evaluate_retrieval(*retrieval, metric="euclidean")
    scores, relevant = -abs(images - texts.T), labels[:, None] == text_labels[None]
    told = result.to_dict().get("ties", {})
    for name, s, r in (("image_to_text", scores, relevant), ("text_to_image", scores.T, relevant.T)):
        # The place of the first positive when positives go last, or first, among what scores the same.
        queries = list(zip(s, r, strict=True))
        worst, best = (
            np.array([1 + hits[np.lexsort((hits ^ swap, -row))].argmax() for row, hits in queries])
            for swap in (False, True)
        )
        depend = int((worst != best).sum())
        assert (name in told) == (depend > 0)
        if depend:
            assert told[name]["queries"] == depend
            assert told[name]["share"] == pytest.approx(100 * depend / len(s))
            for k in (1, 5, 10):
                expected = [100 * (worst <= k).mean(), 100 * (best <= k).mean()]
                assert told[name][f"R@{k}"] == pytest.approx(expected)
                assert result.to_dict()[name][f"R@{k}"] == told[name][f"R@{k}"][0]


def test_the_table_tells_of_ties_only_where_there_are_some():
    labels = np.arange(4)
    assert "ties, " not in evaluate_retrieval(np.eye(4), np.eye(4), labels, labels).to_table()
    table = evaluate_retrieval(np.eye(4), np.eye(4)[[0, 0, 2, 3]], labels, labels).to_table()
    assert (
        "ties, image to text: the rank of 2 queries (50.0 %) depends on them, "
        "R@1 50.0 to 100.0 with all against the model and all for it"
    ) in table
    assert "ties, text to image: the rank of 1 query (25.0 %) depends on them, none of these recalls does" in table


def test_images_repeated_for_each_caption_are_told_of(caplog):
    """VSE++ keeps an image once for each of its five captions."""
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(20, 8)), random.normal(size=(100, 8))
    labels = np.arange(20).repeat(5)
    evaluate_retrieval(images.repeat(5, 0), texts, labels, labels)
    assert caplog.messages == [
        "100 of 100 rows of image_embeddings are identical to another, such as rows 0 and 1, both with label 0: each "
        "copy takes a place of its own in the rankings and is a query of its own; give each item once, or recall is "
        "lower than it should be"
    ]
    caplog.clear()
    evaluate_retrieval(images, texts, np.arange(20), labels)
    assert caplog.messages == []


@pytest.mark.parametrize(("copies", "told"), [(1, False), (4, True)])
def test_a_pair_of_equal_captions_of_an_image_is_nothing_to_tell_of(caplog, copies, told):
    """From a hundredth of the rows on it is: 8 of 500, not 2."""
    random = np.random.default_rng(0)
    texts, labels = random.normal(size=(500, 8)), np.arange(100).repeat(5)
    texts[5 * np.arange(copies)] = texts[5 * np.arange(copies) + 1]
    evaluate_retrieval(random.normal(size=(100, 8)), texts, np.arange(100), labels)
    assert bool(caplog.messages) == told


def test_identical_rows_of_different_labels_are_told_of_once(caplog):
    labels = np.arange(4)
    for _ in range(3):
        evaluate_retrieval(np.eye(4), np.eye(4)[[0, 1, 2, 1]], labels, labels)
    assert len(caplog.messages) == 1
    assert (
        "2 of 4 rows of text_embeddings are identical to another, such as rows 1 and 3, with labels 1 and 3: no"
        in (caplog.messages[0])
    )


def test_a_protocol_that_averages_texts_does_not_tell_of_equal_ones(caplog):
    labels = np.arange(3)
    data = Embeddings.checked(np.eye(3), np.eye(3)[[0, 0, 1, 2]], labels, labels[[0, 0, 1, 2]])
    with caplog.at_level(logging.WARNING):
        find_protocol("cub").evaluate(data)
    assert caplog.messages == []
    find_protocol("plain").evaluate(data)
    assert "2 of 4 rows of text_embeddings" in caplog.messages[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("values", "dimension"), [(2, 3), (3, 6), (2, 14), (5, 40), (2, 600)])
def test_identical_rows_are_those_that_a_comparison_of_all_pairs_finds(dtype, values, dimension):
    random = np.random.default_rng(1)
    rows, labels = random.integers(0, values, (300, dimension)).astype(dtype), random.integers(0, 3, 300)
    rows[200] = rows[100]
    same = (rows[:, None] == rows[None]).all(2) & ~np.eye(300, dtype=bool)
    found = find_identical_rows(rows, labels)
    assert found.rows == same.any(1).sum()
    assert found.differ == (same & (labels[:, None] != labels[None])).any()
    assert same[found.example]
    assert found.differ == (labels[found.example[0]] != labels[found.example[1]])
    assert find_identical_rows(random.normal(size=(300, dimension)).astype(np.float64), labels) is None
