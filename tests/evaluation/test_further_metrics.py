"""Further metrics against full sorts and other packages, and the values of single queries behind every metric."""

import math

import numpy as np
import pytest
from hypothesis import given, settings

from crosspair import UserError, evaluate_retrieval
from tests.fixtures.rankings import tied_retrieval

EXTRA = ("MRR", "mINP", "nDCG", "mAP@R", "R-Precision")
KS = (1, 3, 50)
AT_K = tuple(f"{name}@{k}" for name in ("AP", "mAP", "nDCG") for k in KS)


@given(tied_retrieval())
@settings(deadline=None, max_examples=100)
def test_every_query_has_the_values_of_a_full_sort(full_sort, retrieval):
    images, texts, labels, text_labels = retrieval
    result = evaluate_retrieval(*retrieval, metric="euclidean", extra=EXTRA + AT_K)
    scores, relevant = -abs(images - texts.T), labels[:, None] == text_labels[None]
    for direction, s, r in (
        (result.image_to_text, scores, relevant),
        (result.text_to_image, scores.T, relevant.T),
    ):
        expected = [full_sort(s[query], r[query]) for query in range(len(s))]
        np.testing.assert_allclose(
            direction.values("mINP"), [query.inverse_negative_penalty for query in expected], atol=1e-12
        )
        np.testing.assert_allclose(direction.values("nDCG"), [query.ndcg for query in expected], atol=1e-12)
        np.testing.assert_allclose(direction.values("MRR"), [1 / query.first for query in expected], atol=1e-12)
        for name in AT_K:
            kind, k = name.split("@")
            naive = [NAIVE_AT_K[kind](query.places, int(k)) for query in expected]
            np.testing.assert_allclose(direction.values(name), naive, atol=1e-12, err_msg=name)


def precision_at_k(places, k):
    return sum(place <= k for place in places) / k


def average_precision_at_k(places, k):
    reached = [number / place for number, place in enumerate(places, 1) if place <= k]
    return sum(reached) / min(k, len(places))


def ndcg_at_k(places, k):
    gain = sum(1 / math.log2(1 + place) for place in places if place <= k)
    return gain / sum(1 / math.log2(1 + place) for place in range(1, min(k, len(places)) + 1))


NAIVE_AT_K = {"AP": precision_at_k, "mAP": average_precision_at_k, "nDCG": ndcg_at_k}


@given(tied_retrieval())
@settings(deadline=None, max_examples=60)
def test_the_laws_between_metrics_hold(retrieval):
    """A cut-off beyond the gallery cuts nothing; a first place is worth the same to all; what grows with K grows."""
    result = evaluate_retrieval(*retrieval, metric="euclidean")
    for direction in (result.image_to_text, result.text_to_image):
        size = direction.ranks.gallery_size
        np.testing.assert_allclose(direction.values(f"nDCG@{size}"), direction.values("nDCG"))
        places = direction.ranks
        untied = np.add.reduceat(places.numbers / places.places, places.offsets[:-1]) / places.positives
        np.testing.assert_allclose(direction.values(f"mAP@{size}"), untied)
        for name in ("AP@1", "mAP@1", "nDCG@1"):
            np.testing.assert_array_equal(direction.values(name), direction.values("R@1"), err_msg=name)
        for k in range(1, size):
            assert (direction.values(f"R@{k}") <= direction.values(f"R@{k + 1}")).all()
        assert (direction.values("mAP@R") <= direction.values("R-Precision") + 1e-12).all()
        assert (direction.values("MRR") >= direction.values("mAP") - 1e-12)[places.positives == 1].all()


def test_metrics_at_k_are_those_of_trec_eval_also_in_galleries_below_k():
    ir_measures = pytest.importorskip("ir_measures", reason="ir_measures (optional) is not installed")
    from ir_measures import AP, RR, P, Success, nDCG

    random = np.random.default_rng(0)
    for size in (3, 8, 40):
        labels = np.arange(size) // 2
        result = evaluate_retrieval(*random.normal(size=(2, size, 4)), labels, labels)
        for direction in (result.image_to_text, result.text_to_image):
            run, qrels = [], []
            for query, places in enumerate(np.split(direction.ranks.places, direction.ranks.offsets[1:-1])):
                run += [ir_measures.ScoredDoc(f"{query}", f"{place}", -float(place)) for place in range(1, size + 1)]
                qrels += [ir_measures.Qrel(f"{query}", f"{place}", 1) for place in places]
            for k in (1, 5, 10, 50):
                theirs = ir_measures.calc_aggregate([P @ k, AP @ k, nDCG @ k, Success @ k, RR], qrels, run)
                ours = {
                    P @ k: direction.values(f"AP@{k}").mean(),
                    nDCG @ k: direction.values(f"nDCG@{k}").mean(),
                    Success @ k: direction.values(f"R@{k}").mean(),
                    RR: direction.values("MRR").mean(),
                    # trec_eval divides by the number of positives, here it is at most k
                    AP @ k: (
                        direction.values(f"mAP@{k}")
                        * np.minimum(k, direction.ranks.positives)
                        / direction.ranks.positives
                    ).mean(),
                }
                assert theirs == pytest.approx(ours, abs=1e-9), (size, k)


@given(tied_retrieval())
@settings(deadline=None, max_examples=40)
def test_a_metric_is_the_mean_of_its_values_and_lies_between_0_and_100(retrieval):
    result = evaluate_retrieval(*retrieval, metric="euclidean", metric_definition="original", extra=EXTRA + AT_K)
    for direction in (result.image_to_text, result.text_to_image):
        for name, value in direction.to_dict().items():
            values = direction.values(name)
            assert len(values) == len(direction.ranks.positives)
            if not name.endswith("rank"):
                assert value == pytest.approx(values.mean() * 100)
                assert 0 <= value <= 100 + 1e-9
        assert direction.value("mean_rank") == pytest.approx(direction.values("mean_rank").mean())
        assert direction.value("median_rank") == np.median(direction.values("median_rank"))


def test_hand_made_rankings():
    """One picture at 0; its texts stand at places 1, 3 and 6 of 6, or tie with a negative."""
    image, label = np.zeros((2, 1)), np.array([1, 0])
    texts = np.array([1.0, 2, 3, 4, 5, 6])[:, None]
    first = evaluate_retrieval(image, texts, label, np.array([1, 0, 1, 0, 0, 1]), metric="euclidean")
    found = first.image_to_text
    assert found.values("mINP")[0] == 3 / 6
    assert found.values("AP@3")[0] == 2 / 3
    assert found.values("AP@50")[0] == 3 / 50
    assert found.values("mAP@2")[0] == pytest.approx(1 / 2)
    assert found.values("mAP@3")[0] == pytest.approx((1 + 2 / 3) / 3)
    assert found.values("nDCG@2")[0] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert found.values("MRR")[0] == 1
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert found.values("nDCG")[0] == pytest.approx((1 + 1 / 2 + 1 / math.log2(7)) / ideal)


def test_average_precision_at_k_of_a_query_whose_positives_are_partly_beyond_k():
    """Places 1 and 5 with K = 3: half of the positives found; dividing by those found would give 100."""
    texts = np.array([1.0, 2, 3, 4, 5])[:, None]
    found = evaluate_retrieval(np.zeros((2, 1)), texts, np.array([1, 0]), np.array([1, 0, 0, 0, 1]), metric="euclidean")
    assert found.image_to_text.values("mAP@3")[0] == 0.5


def test_ties_count_against_the_model():
    """A positive and a negative of equal score: the negative goes first."""
    result = evaluate_retrieval(np.ones((2, 1)), np.ones((2, 1)), np.arange(2), np.arange(2), extra=EXTRA + AT_K)
    values = result.to_dict()["text_to_image"]
    assert values["mINP"] == 50
    assert values["AP@1"] == 0
    assert values["nDCG"] == pytest.approx(100 / math.log2(3))


def test_a_perfect_ranking_has_100_per_cent_of_everything_but_the_precision_beyond_its_positives():
    values = evaluate_retrieval(np.eye(4), np.eye(4), np.arange(4), np.arange(4), extra=EXTRA + AT_K).to_dict()
    for direction in ("image_to_text", "text_to_image"):
        beyond = {"AP@3": 100 / 3, "AP@50": 2}
        chosen = {name: values[direction][name] for name in EXTRA + AT_K}
        assert chosen == pytest.approx(dict.fromkeys(chosen, 100) | beyond)


def test_the_contract_has_no_key_that_was_not_asked_for():
    usual = evaluate_retrieval(np.eye(3), np.eye(3), np.arange(3), np.arange(3)).to_dict()["image_to_text"]
    more = evaluate_retrieval(np.eye(3), np.eye(3), np.arange(3), np.arange(3), extra=("mINP", "R@1", "R@2"))
    assert [*usual, "mINP", "R@2"] == list(more.to_dict()["image_to_text"])
    assert "mINP" in more.to_table().splitlines()[0]


@pytest.mark.parametrize("name", ["minp", "AP@0", "AP@", "R@1.5", "AP@-1", "R@01", "NDCG@10", "MRR@10", ""])
def test_a_metric_that_is_none_brings_those_that_are(name):
    with pytest.raises(
        UserError,
        match=r"there is no metric .*; expected mAP, .*mINP, nDCG, .*R@K, AP@K, mAP@K and nDCG@K with a K",
    ):
        evaluate_retrieval(np.eye(3), np.eye(3), np.arange(3), np.arange(3), extra=(name,))
