"""Intervals against known distributions and a plain loop; the permutation test against all permutations."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.metrics import DirectionResult, RetrievalResult
from crosspair.evaluation.protocols import PLAIN, Evaluation, find_protocol
from crosspair.evaluation.ranking import PositiveRanks
from crosspair.evaluation.uncertainty import (
    RSUM,
    ClusterSums,
    bootstrap,
    differences,
    enough_resamples,
    group_intervals,
)

R1 = [("image_to_text", "R@1"), ("text_to_image", "R@1")]


def evaluated(num_images=60, texts_each=5, noise=1.2, seed=0, shared=0.0, protocol=PLAIN, labels=None):
    """An evaluation; `shared` is the part of a text's noise that it has in common with its picture's other texts."""
    random = np.random.default_rng(seed)
    images = np.random.default_rng(99).normal(size=(num_images, 6))
    labels = np.arange(num_images) if labels is None else labels
    rows = np.repeat(np.arange(num_images), texts_each)
    common = random.normal(size=(num_images, 6))[rows]
    own = random.normal(size=(len(rows), 6))
    texts = images[rows] + noise * (shared * common + (1 - shared) * own)
    return protocol.evaluate(Embeddings.checked(images, texts, labels, labels[rows], rows))


def test_every_metric_has_an_interval_around_its_value():
    found = evaluated(labels=np.arange(60) // 2, protocol=find_protocol("rstpreid"))
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
    found = evaluated(num_images=12, texts_each=texts_each)
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
    from crosspair.evaluation.uncertainty import _medians

    found = evaluated(num_images=9, texts_each=2, noise=3)
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
    found = evaluated(num_images=400, texts_each=1, noise=0.45)
    low, high = bootstrap(found).bounds["text_to_image", "R@1"]
    share = found.result.text_to_image.recall(1) / 100
    assert 0.2 < share < 0.8
    assert (high - low) / 100 == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 400), rel=0.06)


def test_captions_that_succeed_together_widen_the_interval():
    """With the same noise in all five texts of a picture there are as many independent draws as pictures."""
    widths = []
    for shared in (0.0, 1.0):
        found = evaluated(num_images=200, shared=shared)
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
    from crosspair.evaluation import uncertainty

    found = evaluated()
    whole = bootstrap(found, 4000).bounds
    monkeypatch.setattr(uncertainty, "_ENTRIES", 500)
    for name, (low, high) in bootstrap(found, 4000).bounds.items():
        assert (low, high) == pytest.approx(whole[name], abs=0.2 * (whole[name][1] - whole[name][0]) + 1e-9)


def test_one_picture_alone_has_an_interval_without_width():
    found = evaluated(num_images=1)
    assert bootstrap(found, 50).bounds["text_to_image", "R@1"] == (100, 100)


def test_the_permutation_test_agrees_with_all_permutations():
    ours, theirs = evaluated(num_images=10, noise=0.6), evaluated(num_images=10, noise=1.6, seed=5)
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
    ours, theirs = evaluated(num_images=200, seed=3), evaluated(num_images=200, seed=3, noise=1.25)
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
    found = evaluated(labels=np.arange(60) // 2, protocol=find_protocol("rstpreid"))
    lines = bootstrap(found, 100).to_table(found).splitlines()
    assert "60 clusters of queries drawn 100 times" in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("text to image")
    assert "mINP" in lines[1]


def test_millions_of_pictures_are_drawn_less_often_and_never_less_than_a_thousand_times():
    assert [enough_resamples(clusters) for clusters in (1, 5000, 20_000, 40_000, 10**6)] == [
        10_000,
        10_000,
        10_000,
        5000,
        1000,
    ]
    assert bootstrap(evaluated(num_images=20)).resamples == 10_000


def simulated(ranks, gallery=200):
    """An evaluation of pictures with five captions each, made from the ranks of their one positive [pictures, 5].

    Image to text counts the best of them.
    """
    num_images, captions = ranks.shape
    clusters = np.arange(num_images)

    def direction(values):
        rows = np.arange(len(values) + 1)
        return DirectionResult(PositiveRanks(values, rows, gallery, rows[:-1], values), (1, 5, 10), extra=("nDCG",))

    result = RetrievalResult(direction(ranks.min(1)), direction(ranks.ravel()))
    return Evaluation(PLAIN, result, (), clusters, clusters.repeat(captions))


def drawn_ranks(random, num_images, strength=0.0):
    """Ranks of five captions that share their picture's difficulty; a higher strength ranks better."""
    shared = random.normal(size=(num_images, 1))
    ease = shared + 0.5 * random.normal(size=(num_images, 5)) + strength
    return np.clip(np.exp(2 - 1.5 * ease), 1, 200).astype(np.int64)


def test_intervals_of_every_mean_cover_the_truth_about_as_often_as_they_say():
    """200 test sets of 150 pictures from a source whose true values are those of 100,000 pictures."""
    random = np.random.default_rng(0)
    names = [("image_to_text", "R@1")]
    names += [("text_to_image", name) for name in ("R@1", "mAP", "nDCG", "mean_rank")]
    truth = simulated(drawn_ranks(random, 100_000)).result
    covered, unclustered = dict.fromkeys(names, 0), 0
    for seed in range(200):
        found = simulated(drawn_ranks(random, 150))
        bounds = group_intervals([found], names, 300, seed)
        for direction, name in names:
            low, high = bounds[direction, name]
            covered[direction, name] += low <= getattr(truth, direction).value(name) <= high
        alone = replace(found, text_clusters=np.arange(len(found.text_clusters)))
        low, high = group_intervals([alone], names[1:2], 100, seed)["text_to_image", "R@1"]
        unclustered += low <= truth.text_to_image.recall(1) <= high
    for name, count in covered.items():
        assert 0.895 <= count / 200 <= 0.985, name
    assert unclustered / 200 < 0.85  # captions drawn as if they were independent promise too much


def test_intervals_of_the_median_rank_cover_it_at_least_as_often_as_they_say():
    """Ranks are whole numbers, so an interval of them can't be as short as that of a mean."""
    random = np.random.default_rng(0)
    truth = simulated(drawn_ranks(random, 200_000)).result.text_to_image.value("median_rank")
    covered = 0
    for seed in range(100):
        low, high = bootstrap(simulated(drawn_ranks(random, 100)), 100, seed).bounds["text_to_image", "median_rank"]
        covered += low <= truth <= high
    assert covered >= 90


def test_intervals_of_differences_cover_the_truth():
    random = np.random.default_rng(1)
    name = ("text_to_image", "mAP")
    true = [simulated(drawn_ranks(random, 200_000, s)).result.text_to_image.value("mAP") for s in (0.3, 0)]
    covered = 0
    for seed in range(300):
        shared = drawn_ranks(random, 120), drawn_ranks(random, 120, 0.3)
        ours, theirs = simulated(shared[1]), simulated(shared[0])
        found = differences([ours], [theirs], [name], 300, seed)[name]
        covered += found.low <= true[0] - true[1] <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_the_permutation_test_errs_as_often_as_its_level_says():
    """Two models that are equally good, with the pictures' difficulty in common: p is uniform."""
    random = np.random.default_rng(2)
    names = [("text_to_image", name) for name in ("R@1", "mAP", "mean_rank")]
    values = {name: [] for name in [*names, RSUM]}
    for seed in range(400):
        shared = random.normal(size=(100, 1))
        both = [np.clip(np.exp(2 - shared - 0.7 * random.normal(size=(100, 5))), 1, 200).astype(int) for _ in range(2)]
        for name, found in differences(*([simulated(ranks)] for ranks in both), names, 300, seed).items():
            values[name].append(found.p)
    for name, p in values.items():
        for level in (0.05, 0.2, 0.5):
            deviation = np.sqrt(level * (1 - level) / 400)
            assert abs(np.mean(np.array(p) <= level) - level) < 3.5 * deviation, (name, level)


def test_the_permutation_test_finds_a_difference_that_is_there():
    random = np.random.default_rng(3)
    name = ("text_to_image", "mAP")
    found = 0
    for seed in range(50):
        shared = random.normal(size=(200, 1))
        both = [
            np.clip(np.exp(2 - shared - 0.7 * random.normal(size=(200, 5)) - gain), 1, 200).astype(int)
            for gain in (0.15, 0)
        ]
        found += differences(*([simulated(ranks)] for ranks in both), [name], 300, seed)[name].p < 0.05
    assert found > 40


def test_the_test_is_two_sided_whichever_is_named_first():
    ours, theirs = evaluated(num_images=30, noise=1.1), evaluated(num_images=30, noise=1.3, seed=5)
    found, swapped = differences([ours], [theirs], R1), differences([theirs], [ours], R1)
    for name in R1:
        assert swapped[name].value == -found[name].value
        assert (swapped[name].low, swapped[name].high) == pytest.approx((-found[name].high, -found[name].low))
        assert swapped[name].p == found[name].p
