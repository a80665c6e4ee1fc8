"""Intervals against closed forms and a plain recomputation; the permutation test against all permutations."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from crosspair.evaluation.clusters import RSUM, Clusters, ClusterSums
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, find_protocol
from crosspair.evaluation.uncertainty import differences, enough_permutations, group_intervals, intervals_of
from tests.fixtures.rankings import evaluation_of_ranks

R1 = [("image_to_text", "R@1"), ("text_to_image", "R@1")]
Z = NormalDist().inv_cdf(0.975)


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


def wilson(found, queries):
    """Wilson's score interval of `found` of `queries` independent queries, in per cent."""
    share = found / queries
    middle = (share + Z**2 / (2 * queries)) / (1 + Z**2 / queries)
    half = Z / (1 + Z**2 / queries) * math.sqrt(share * (1 - share) / queries + Z**2 / (4 * queries**2))
    return 100 * (middle - half), 100 * (middle + half)


def of_hits(hits):
    """An evaluation of pictures whose captions are found at once, or at rank 50: hits [pictures, captions]."""
    return evaluation_of_ranks(np.where(np.asarray(hits), 1, 50))


def test_every_metric_has_an_interval_around_its_value():
    found = evaluated(labels=np.arange(60) // 2, protocol=find_protocol("rstpreid"))
    intervals = intervals_of(found)
    values = found.to_dict()
    written = intervals.to_dict()
    for direction in ("image_to_text", "text_to_image"):
        numbers = {name: value for name, value in values[direction].items() if isinstance(value, float)}
        assert set(numbers) <= set(written[direction])
        for name, value in numbers.items():
            low, high = written[direction][name]
            assert low <= value <= high, name
            assert high > low
    assert written["rsum"][0] < values["rsum"] < written["rsum"][1]
    assert (written["clusters"], written["unit"]) == (30, "persons")


@pytest.mark.parametrize("queries", [1, 7, 40, 200])
def test_the_interval_of_independent_queries_is_wilsons(queries):
    """Also where all or none are found: it never collapses."""
    for found in {0, 1, queries // 2, queries - 1, queries}:
        hits = (np.arange(queries) < found)[:, None]
        for direction in ("image_to_text", "text_to_image"):
            bounds = intervals_of(of_hits(hits)).bounds[direction, "R@1"]
            assert bounds == pytest.approx(wilson(found, queries), abs=1e-9)


def test_forty_perfect_pictures_promise_no_more_than_forty_can():
    found = of_hits(np.ones((40, 5), dtype=bool))
    bounds = intervals_of(found).bounds
    assert bounds["text_to_image", "R@1"] == pytest.approx(wilson(40, 40))
    assert bounds["text_to_image", "mAP"] == pytest.approx(wilson(40, 40))
    assert bounds[RSUM] == pytest.approx([6 * bound for bound in wilson(40, 40)])
    assert bounds["text_to_image", "R@1"][0] == pytest.approx(91.24, abs=0.01)


@pytest.mark.parametrize("sizes", [[3] * 12, list(range(1, 13))])
def test_the_interval_is_that_of_a_plain_recomputation(sizes):
    """Clusters of equal and of unequal size; the formula written out with Python's numbers."""
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(12), sizes)
    hits = random.random(len(labels)) < 0.6
    found = evaluation_of_ranks(np.where(hits, 1, 50)[:, None], labels)
    total = sum(sizes)
    typical = sum((size / total) ** 2 for size in sizes)
    added = Z**2 / 2
    size = total * typical  # of a cluster that is added
    share = (sum(map(int, hits)) + added * size) / (total + 2 * added * size)
    squares = sum((sum(map(int, hits[labels == c])) - share * sizes[c]) ** 2 for c in range(12))
    squares += added * (size - share * size) ** 2 + added * (share * size) ** 2
    variance = squares / (total + 2 * added * size) ** 2
    effective = share * (1 - share) / variance / (1 + 2 * added * typical)
    assert 12 <= effective <= total
    bounds = group_intervals([found], R1)["text_to_image", "R@1"]
    assert bounds == pytest.approx(wilson(hits.mean() * effective, effective), abs=1e-9)


def test_captions_that_succeed_together_count_as_one():
    """Five captions that are always found together are worth as much as one; five that are independent nearly five."""
    random = np.random.default_rng(0)
    widths = []
    for hits in (random.random((1000, 1)).repeat(5, 1) < 0.5, random.random((1000, 5)) < 0.5):
        low, high = intervals_of(of_hits(hits)).bounds["text_to_image", "R@1"]
        share = 100 * hits.mean()
        widths.append((high - low) / (2 * Z * math.sqrt(share * (100 - share) / 5000)))
    assert widths[0] == pytest.approx(math.sqrt(5), rel=0.01)
    assert widths[1] == pytest.approx(1, rel=0.06)


def test_a_label_that_covers_several_pictures_is_drawn_as_a_whole():
    """Whether or not anybody knows which picture a text was written for."""
    random = np.random.default_rng(0)
    persons = np.arange(90) // 3
    rows = np.repeat(np.arange(90), 2)
    images, texts = random.normal(size=(90, 4)), random.normal(size=(180, 4))
    known = Embeddings.checked(images, texts, persons, persons[rows], rows)
    unknown = Embeddings.checked(images, texts, persons, persons[rows])
    both = [intervals_of(PLAIN.evaluate(each)) for each in (known, unknown)]
    assert both[0] == both[1]
    assert (both[0].clusters, both[0].unit) == (30, "labels")
    assert intervals_of(evaluated()).unit == "pictures"


@pytest.mark.parametrize(
    "renumber", [lambda labels: labels * 7 - 3, lambda labels: -labels, lambda labels: 10**12 + labels]
)
def test_intervals_don_t_depend_on_how_labels_are_numbered(renumber):
    labels = np.arange(60) // 2
    one, other = evaluated(labels=labels), evaluated(labels=renumber(labels))
    assert intervals_of(one) == intervals_of(other)
    assert Clusters.of(one).same_as(Clusters.of(other))
    for difference in differences([one], [other], R1).values():
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_few_queries_come_with_a_warning():
    text = intervals_of(evaluated(num_images=49)).to_table(evaluated(num_images=49))
    assert text.splitlines()[-1].startswith("warning: the queries come from 49 pictures only, expected 50 or more")
    assert "warning" not in intervals_of(evaluated(num_images=50)).to_table(evaluated(num_images=50))


def test_one_picture_alone_says_next_to_nothing():
    bounds = intervals_of(evaluated(num_images=1)).bounds
    assert bounds["text_to_image", "R@1"] == pytest.approx(wilson(1, 1))
    assert bounds["text_to_image", "mean_rank"] == (1, 1)


def test_the_median_rank_lies_between_the_queries_that_may_be_in_the_middle():
    """For independent queries those are the order statistics of the sign test."""
    ranks = np.arange(1, 101)
    low, high = intervals_of(evaluation_of_ranks(ranks[:, None], gallery=500)).bounds["text_to_image", "median_rank"]
    assert (low, high) == (40, 61)  # P(40th < median < 61st) = 0.9648 for 100 throws of a coin
    few = intervals_of(evaluation_of_ranks(ranks[:3, None], gallery=500)).bounds["text_to_image", "median_rank"]
    assert few == (1, 500)


def test_the_table_shows_what_the_protocol_reports():
    found = evaluated(num_images=120, labels=np.arange(120) // 2, protocol=find_protocol("rstpreid"))
    lines = intervals_of(found).to_table(found).splitlines()
    assert "60 persons drawn with all of their queries" in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("text to image")
    assert "mINP" in lines[1]


def test_the_permutation_test_agrees_with_all_permutations():
    ours, theirs = evaluated(num_images=10, noise=0.6), evaluated(num_images=10, noise=1.6, seed=5)
    found = differences([ours], [theirs], R1)
    shares = ClusterSums.of([ours], R1, [theirs]).shares([1])
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = np.mean(abs(signs @ shares) >= abs(shares.sum()) - 1e-9)
    name = ("text_to_image", "R@1")
    assert found[name].value == pytest.approx(
        ours.result.text_to_image.recall(1) - theirs.result.text_to_image.recall(1)
    )
    assert 0.001 < exact < 0.6
    assert found[name].p == pytest.approx(exact, abs=0.015)
    assert found[name].low <= found[name].value <= found[name].high


def test_runs_that_rank_alike_have_no_difference_and_no_width():
    run = evaluated()
    for difference in differences([run], [run], R1, permutations=100).values():
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_two_runs_that_find_everything_may_still_differ():
    """Forty pictures can't tell that both always will: Bonett and Price's interval of no discordant pair in 40."""
    first = np.ones((40, 1), dtype=int)
    ours, theirs = evaluation_of_ranks(first), evaluation_of_ranks(first + (np.arange(40) == 0)[:, None])
    found = differences([ours], [theirs], [("text_to_image", "R@5")])["text_to_image", "R@5"]
    assert (found.value, found.p) == (0, 1)
    assert found.high == pytest.approx(100 * Z * math.sqrt(2) / 42) == -found.low


def test_the_interval_of_a_paired_difference_is_bonett_and_prices():
    """Independent queries, b found by the first alone and c by the second: (b - c) / (n + 2), one added to each."""
    ours, theirs = np.zeros((60, 1), dtype=bool), np.zeros((60, 1), dtype=bool)
    ours[:30], theirs[5:33] = True, True  # 5 by the first alone, 3 by the second
    found = differences([of_hits(ours)], [of_hits(theirs)], [R1[1]])[R1[1]]
    wins, losses = 6 / 62, 4 / 62
    half = Z * math.sqrt((wins + losses - (wins - losses) ** 2) / 62)
    assert (found.low, found.high) == pytest.approx((100 * (wins - losses - half), 100 * (wins - losses + half)))


def test_paired_differences_are_surer_than_two_intervals():
    """Nearly the same model: hard pictures are hard for both."""
    ours, theirs = evaluated(num_images=200, seed=3), evaluated(num_images=200, seed=3, noise=1.25)
    name = ("text_to_image", "R@1")
    paired = differences([ours], [theirs], R1, permutations=2000)[name]
    low, high = intervals_of(ours).bounds[name]
    assert paired.high - paired.low < 0.6 * (high - low)
    assert paired.p < 0.05


def test_groups_are_compared_by_their_means_over_seeds():
    ours, theirs = [evaluated(seed=s) for s in (1, 2, 3)], [evaluated(seed=s, noise=2) for s in (4, 5)]
    found = differences(ours, theirs, R1, permutations=200)
    for direction, name in R1:
        means = [np.mean([getattr(run.result, direction).value(name) for run in group]) for group in (ours, theirs)]
        assert found[direction, name].value == pytest.approx(means[0] - means[1])
    assert found[RSUM].value == pytest.approx(sum(found[name].value for name in R1))
    assert found[RSUM].p == pytest.approx(1 / 201)


def test_the_test_is_two_sided_whichever_is_named_first():
    ours, theirs = evaluated(num_images=30, noise=1.1), evaluated(num_images=30, noise=1.3, seed=5)
    found, swapped = differences([ours], [theirs], R1), differences([theirs], [ours], R1)
    for name in R1:
        assert swapped[name].value == -found[name].value
        assert (swapped[name].low, swapped[name].high) == pytest.approx((-found[name].high, -found[name].low))
        assert swapped[name].p == found[name].p


def test_blocks_of_any_size_give_the_same_test(monkeypatch):
    from crosspair.evaluation import uncertainty

    ours, theirs = evaluated(noise=1.0), evaluated(noise=1.3, seed=5)
    whole = differences([ours], [theirs], R1)
    monkeypatch.setattr(uncertainty, "_ENTRIES", 500)
    for name, found in differences([ours], [theirs], R1).items():
        assert found.p == pytest.approx(whole[name].p, abs=0.02)
        assert (found.low, found.high) == (whole[name].low, whole[name].high)


def test_millions_of_pictures_are_tossed_less_often_and_never_less_than_a_thousand_times():
    counts = [enough_permutations(clusters) for clusters in (1, 5000, 20_000, 40_000, 10**6)]
    assert counts == [10_000, 10_000, 10_000, 5000, 1000]
