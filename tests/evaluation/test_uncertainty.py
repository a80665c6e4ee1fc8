"""Intervals against known distributions and a plain loop; the permutation test against all permutations."""

import itertools

import numpy as np
import pytest

from cmpl.evaluation.embeddings import Embeddings
from cmpl.evaluation.protocols import PLAIN, PROTOCOLS, evaluate_protocol
from cmpl.evaluation.uncertainty import RSUM, ClusterSums, bootstrap, differences

R1 = [("image_to_text", "R@1"), ("text_to_image", "R@1")]


def evaluated(pictures=60, texts_each=5, noise=1.2, seed=0, shared=0.0, protocol=PLAIN, labels=None):
    """An evaluation; `shared` is the part of a text's noise that it has in common with its picture's other texts."""
    random = np.random.default_rng(seed)
    images = np.random.default_rng(99).normal(size=(pictures, 6))
    labels = np.arange(pictures) if labels is None else labels
    rows = np.repeat(np.arange(pictures), texts_each)
    common = random.normal(size=(pictures, 6))[rows]
    own = random.normal(size=(len(rows), 6))
    texts = images[rows] + noise * (shared * common + (1 - shared) * own)
    return evaluate_protocol(protocol, Embeddings.checked(images, texts, labels, labels[rows], rows))


def test_every_metric_has_an_interval_around_its_value():
    found = evaluated(labels=np.arange(60) // 2, protocol=PROTOCOLS["rstpreid"])
    intervals = bootstrap(found, resamples=400)
    values = found.to_dict()
    written = intervals.to_dict()
    for direction in ("image_to_text", "text_to_image"):
        assert list(written[direction]) == list(values[direction])
        for name, value in values[direction].items():
            low, high = written[direction][name]
            assert low <= value <= high, name
            assert high > low
    assert written["rsum"][0] < values["rsum"] < written["rsum"][1]
    assert written["clusters"] == 60


@pytest.mark.parametrize("texts_each", [3, np.arange(1, 13)])
def test_resamples_are_those_of_a_plain_loop_over_pictures(texts_each):
    found = evaluated(pictures=12, texts_each=texts_each)
    weights = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), size=20).astype(float)
    resampled = ClusterSums.of([found], R1).resample(lambda: iter([weights]))
    for row, weight in enumerate(weights):
        for direction, clusters in (
            ("image_to_text", found.image_clusters),
            ("text_to_image", found.text_clusters),
        ):
            first = getattr(found.result, direction).ranks.first
            drawn = [rank for c in range(12) for _ in range(int(weight[c])) for rank in first[clusters == c]]
            assert resampled[direction, "R@1"][row] == pytest.approx(100 * np.mean(np.array(drawn) <= 1))
        assert resampled[RSUM][row] == pytest.approx(sum(resampled[name][row] for name in R1))


def test_the_median_is_that_of_each_resample():
    from cmpl.evaluation.uncertainty import _medians

    found = evaluated(pictures=9, texts_each=2, noise=3)
    weights = np.random.default_rng(1).multinomial(9, np.full(9, 1 / 9), size=50).astype(float)
    for name, clusters in (
        (("image_to_text", "median_rank"), found.image_clusters),
        (("text_to_image", "median_rank"), found.text_clusters),
    ):
        first = getattr(found.result, name[0]).ranks.first
        expected = [np.median(np.repeat(first, weight[clusters].astype(int))) for weight in weights]
        np.testing.assert_array_equal(_medians(found, name, lambda: iter([weights])), expected)


def test_the_interval_of_independent_queries_is_that_of_a_share():
    """One text a picture: the share of n independent hits has a standard error of sqrt(p (1 - p) / n)."""
    found = evaluated(pictures=400, texts_each=1, noise=0.45)
    low, high = bootstrap(found).bounds["text_to_image", "R@1"]
    share = found.result.text_to_image.recall(1) / 100
    assert 0.2 < share < 0.8
    assert (high - low) / 100 == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 400), rel=0.06)


def test_captions_that_succeed_together_widen_the_interval():
    """With the same noise in all five texts of a picture there are as many independent draws as pictures."""
    widths = []
    for shared in (0.0, 1.0):
        found = evaluated(pictures=200, shared=shared)
        low, high = bootstrap(found, resamples=2000).bounds["text_to_image", "R@1"]
        share = found.result.text_to_image.recall(1) / 100
        widths.append((high - low) / 100 / (2 * 1.96 * np.sqrt(share * (1 - share) / 1000)))
    assert widths[0] < 1.4
    assert widths[1] == pytest.approx(np.sqrt(5), rel=0.15)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = []
    for seed in range(200):
        hits = np.random.default_rng(seed).random((80, 1)) < 0.4
        sums = ClusterSums((R1[0],), hits * 100.0, np.ones((80, 1)))
        draws = np.random.default_rng(seed + 1000).multinomial(80, np.full(80, 1 / 80), size=500).astype(float)
        low, high = np.percentile(sums.resample(lambda draws=draws: iter([draws]))[R1[0]], [2.5, 97.5])
        covered.append(low <= 40 <= high)
    assert 0.89 <= np.mean(covered) <= 0.98


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    found = evaluated()
    assert bootstrap(found, 300, seed=1) == bootstrap(found, 300, seed=1)
    assert bootstrap(found, 300, seed=1).bounds != bootstrap(found, 300, seed=2).bounds


def test_blocks_of_any_size_give_the_same_distribution(monkeypatch):
    from cmpl.evaluation import uncertainty

    found = evaluated()
    whole = bootstrap(found, 4000).bounds
    monkeypatch.setattr(uncertainty, "_ENTRIES", 500)
    for name, (low, high) in bootstrap(found, 4000).bounds.items():
        assert (low, high) == pytest.approx(whole[name], abs=0.2 * (whole[name][1] - whole[name][0]) + 1e-9)


def test_one_picture_alone_has_an_interval_without_width():
    found = evaluated(pictures=1)
    assert bootstrap(found, 50).bounds["text_to_image", "R@1"] == (100, 100)


def test_the_permutation_test_agrees_with_all_permutations():
    ours, theirs = evaluated(pictures=10, noise=0.6), evaluated(pictures=10, noise=1.6, seed=5)
    found = differences([ours], [theirs], R1)
    paired = ClusterSums.of([ours], R1).minus(ClusterSums.of([theirs], R1))
    shares = paired.sums[:, 1] / paired.counts[:, 1].sum()
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = np.mean(abs(signs @ shares) >= abs(shares.sum()) - 1e-9)
    name = ("text_to_image", "R@1")
    assert found[name].value == pytest.approx(
        ours.result.text_to_image.recall(1) - theirs.result.text_to_image.recall(1)
    )
    assert 0.001 < exact < 0.6
    assert found[name].p == pytest.approx(exact, abs=0.015)
    assert found[name].low <= found[name].value <= found[name].high


def test_a_run_does_not_differ_from_itself():
    run = evaluated()
    for difference in differences([run], [run], R1, resamples=100).values():
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_paired_differences_are_surer_than_two_intervals():
    """Nearly the same model: hard pictures are hard for both."""
    ours, theirs = evaluated(pictures=200, seed=3), evaluated(pictures=200, seed=3, noise=1.25)
    name = ("text_to_image", "R@1")
    paired = differences([ours], [theirs], R1, resamples=2000)[name]
    low, high = bootstrap(ours, 2000).bounds[name]
    assert paired.high - paired.low < 0.6 * (high - low)
    assert paired.p < 0.05


def test_groups_are_compared_by_their_means_over_seeds():
    ours, theirs = [evaluated(seed=s) for s in (1, 2, 3)], [evaluated(seed=s, noise=2) for s in (4, 5)]
    found = differences(ours, theirs, R1, resamples=200)
    for direction, name in R1:
        means = [np.mean([getattr(run.result, direction).value(name) for run in group]) for group in (ours, theirs)]
        assert found[direction, name].value == pytest.approx(means[0] - means[1])
    assert found[RSUM].value == pytest.approx(sum(found[name].value for name in R1))
    assert found[RSUM].p == pytest.approx(1 / 201)


def test_the_table_shows_what_the_protocol_reports():
    found = evaluated(labels=np.arange(60) // 2, protocol=PROTOCOLS["rstpreid"])
    lines = bootstrap(found, 100).to_table(found).splitlines()
    assert "60 clusters of queries drawn 100 times" in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("text to image")
    assert "mINP" in lines[1]
