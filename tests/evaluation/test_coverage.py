"""Simulation: intervals hold the true value, and the test finds differences between equals, as often as they say.

Sets of queries are drawn from a source whose true values are known: pictures with five captions, persons with three
pictures of two captions, classes with many pictures. What is drawn together shares its difficulty.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from crosspair.evaluation.clusters import RSUM
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import find_protocol
from crosspair.evaluation.uncertainty import differences, group_intervals, intervals_of
from tests.fixtures.rankings import evaluation_of_ranks

R1 = ("text_to_image", "R@1")
# Pictures of a label, captions of a picture.
KINDS = {"one caption": (1, 1), "plain": (1, 5), "persons": (3, 2), "classes": (20, 1)}


def drawn_hits(random, labels, kind, share, alike):
    """Whether each caption is found at once [pictures, captions], of `labels` labels of a kind.

    share: the true R@1. alike: the correlation of two captions' hits within a label, 0 to below 1.
    """
    pictures, captions = KINDS[kind]
    if alike:
        scale = 1 / alike - 1
        chance = random.beta(share * scale, (1 - share) * scale, labels)
    else:
        chance = np.full(labels, share)
    return random.random((labels * pictures, captions)) < chance.repeat(pictures)[:, None]


def of_hits(hits, kind):
    pictures, _ = KINDS[kind]
    return evaluation_of_ranks(np.where(hits, 1, 50), np.arange(len(hits)) // pictures)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [20, 40, 80, 200])
@pytest.mark.parametrize(("share", "alike"), [(0.5, 0.2), (0.9, 0.7), (0.97, 0.1)])
def test_intervals_of_a_share_cover_it(kind, labels, share, alike):
    """At least 93 times in 100; 700 draws know that to 1 in 100, the bound leaves two of these."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(700):
        low, high = group_intervals([of_hits(drawn_hits(random, labels, kind, share, alike), kind)], [R1])[R1]
        covered += low <= 100 * share <= high
    assert covered / 700 >= 0.91


def test_pictures_of_persons_drawn_as_if_they_were_independent_would_promise_too_much():
    """What the clusters are for: the same queries, each with a label of its own."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        hits = drawn_hits(random, 150, "persons", 0.6, 0.6)
        low, high = group_intervals([evaluation_of_ranks(np.where(hits, 1, 50))], [R1])[R1]
        covered += low <= 60 <= high
    assert covered / 400 < 0.85


def worlds(kind: str, labels: int, models: int = 1, seed: int = 0) -> Iterator[list[Embeddings]]:
    """Test sets without end, each embedded by some models that are equally good and find the same things hard."""
    pictures, captions = KINDS[kind]
    random = np.random.default_rng(seed)
    label = np.repeat(np.arange(labels), pictures)
    row = np.repeat(np.arange(len(label)), captions)
    while True:
        centre, hardness = random.normal(size=(labels, 12)), np.exp(0.6 * random.normal(size=(labels, 1)))
        images = centre[label] + 0.5 * random.normal(size=(len(label), 12))
        texts = images[row] + hardness[label[row]] * random.normal(size=(len(row), 12))
        yield [
            Embeddings.checked(
                images + 0.3 * random.normal(size=images.shape),
                texts + 0.6 * hardness[label[row]] * random.normal(size=texts.shape),
                label,
                label[row],
            )
            for _ in range(models)
        ]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "labels", "protocol"), [("plain", 120, "plain"), ("persons", 120, "cuhk-pedes")])
def test_intervals_of_real_rankings_cover_every_metric(kind, labels, protocol):
    """Queries of one gallery aren't quite independent, which no resampling of them knows; 300 test sets."""
    rank = find_protocol(protocol).evaluate
    names = [("text_to_image", name) for name in ("R@1", "R@5", "mAP", "mINP", "nDCG")]
    names += [("image_to_text", "R@1"), ("image_to_text", "mAP")]
    source = worlds(kind, labels)
    found = [rank(next(source)[0]) for _ in range(300)]
    true = {name: np.mean([each.result.directions[name[0]].value(name[1]) for each in found]) for name in names}
    covered = dict.fromkeys(names, 0)
    for each in found:
        bounds = group_intervals([each], names)
        for name in names:
            covered[name] += bounds[name][0] <= true[name] <= bounds[name][1]
    for name, count in covered.items():
        assert 0.90 <= count / 300 <= 0.99, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "labels", "protocol"), [("plain", 100, "plain"), ("persons", 60, "cuhk-pedes"), ("classes", 12, "cub")]
)
def test_equal_models_differ_as_often_as_the_level_says(kind, labels, protocol):
    """Type-I error of the permutation test, and coverage of the paired interval, over 300 test sets."""
    rank = find_protocol(protocol).evaluate
    names = [("text_to_image", "R@1"), ("text_to_image", "mAP"), ("image_to_text", "R@1")]
    source = worlds(kind, labels, models=2)
    values, covered = {name: [] for name in [*names, RSUM]}, dict.fromkeys([*names, RSUM], 0)
    for seed in range(300):
        ours, theirs = map(rank, next(source))
        for name, difference in differences([ours], [theirs], names, 300, seed).items():
            values[name].append(difference.p)
            covered[name] += difference.low <= 0 <= difference.high
    for name, p in values.items():
        for level in (0.05, 0.2):
            deviation = np.sqrt(level * (1 - level) / 300)
            assert np.mean(np.array(p) <= level) < level + 3 * deviation, (name, level)
            # few classes leave few outcomes of the coins, so that p is larger than it would be
            assert kind == "classes" or np.mean(np.array(p) <= level) > level - 3 * deviation, (name, level)
        assert covered[name] / 300 >= 0.91, name


@pytest.mark.parametrize(("share", "gain"), [(0.5, 0.03), (0.95, 0.004)])
@pytest.mark.parametrize("kind", ["one caption", "plain", "persons"])
def test_intervals_of_differences_cover_the_true_one(kind, share, gain):
    """Two models whose hits go together, the second better by `gain`; also where next to no query differs."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        hits = drawn_hits(random, 60, kind, share, 0.3)
        anew = random.random(hits.shape) < 0.1
        theirs = np.where(anew, random.random(hits.shape) < share + gain / 0.1, hits)
        pictures, _ = KINDS[kind]
        labels = np.arange(len(hits)) // pictures
        first, second = (
            evaluation_of_ranks(np.where(found, 1, random.integers(2, 200, hits.shape)), labels)
            for found in (hits, theirs)
        )
        difference = differences([second], [first], [R1], 10)[R1]
        covered += difference.low <= 100 * gain <= difference.high
    assert covered / 400 >= 0.91


def drawn_ranks(random, pictures, strength=0.0):
    """Ranks of five captions that share their picture's difficulty; a higher strength ranks better."""
    shared = random.normal(size=(pictures, 1))
    ease = shared + 0.5 * random.normal(size=(pictures, 5)) + strength
    return np.clip(np.exp(2 - 1.5 * ease), 1, 200).astype(np.int64)


def test_intervals_of_ranks_cover_the_true_ones():
    """The mean has a long tail, so that few queries say less than they seem to; the median is a whole number."""
    random = np.random.default_rng(0)
    truth = evaluation_of_ranks(drawn_ranks(random, 100_000)).result.text_to_image
    covered = dict.fromkeys(["mean_rank", "median_rank"], 0)
    for _ in range(300):
        bounds = intervals_of(evaluation_of_ranks(drawn_ranks(random, 150))).bounds
        for name in covered:
            low, high = bounds["text_to_image", name]
            covered[name] += low <= truth.value(name) <= high
    assert covered["mean_rank"] / 300 >= 0.90
    assert covered["median_rank"] / 300 >= 0.92


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
        found += differences(*([evaluation_of_ranks(ranks)] for ranks in both), [name], 300, seed)[name].p < 0.05
    assert found > 40
