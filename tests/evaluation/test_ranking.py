"""Ranks by counting in tiles against ranks by sorting everything."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.evaluation import counting
from crosspair.evaluation.ranking import PositiveRanks, rank_positives


@st.composite
def small_retrieval(draw):
    """Embeddings of a few small whole numbers, exact in any arithmetic and full of ties and duplicates, and labels."""
    labels = np.array(draw(st.lists(st.integers(-3, 3) | st.just(2**62), min_size=1, max_size=40)))
    kinds = np.unique(labels)
    extra = draw(st.lists(st.sampled_from(kinds.tolist()), max_size=60))
    text_labels = np.array(draw(st.permutations(kinds.tolist() + extra)))
    dimension = draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = random.integers(-2, 3, (len(labels), dimension))
    texts = random.integers(-2, 3, (len(text_labels), dimension))
    return images, texts, labels, text_labels


def squared_distances(images, texts):
    return ((images[:, None] - texts[None]) ** 2).sum(2)


def per_query(result: PositiveRanks):
    return [result.ranks[start:end].tolist() for start, end in zip(result.offsets, result.offsets[1:], strict=False)]


def assert_equal(one: PositiveRanks, other: PositiveRanks):
    assert one.gallery_size == other.gallery_size
    np.testing.assert_array_equal(one.ranks, other.ranks)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_array_equal(one.queries, other.queries)
    np.testing.assert_array_equal(one.optimistic, other.optimistic)


def random_retrieval(images=300, texts_each=3, dimension=48, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(images, dimension, generator=generator, dtype=dtype)
    texts = centres.repeat_interleave(texts_each, 0)
    texts = texts + torch.randn(texts.shape, generator=generator, dtype=dtype) * 2
    labels = torch.arange(images)
    return centres, texts, labels, labels.repeat_interleave(texts_each)


@given(small_retrieval(), st.sampled_from([np.float32, np.float64]))
@settings(deadline=None, max_examples=150)
def test_ranks_are_those_of_a_full_sort(full_sort, retrieval, dtype):
    images, texts, labels, text_labels = retrieval
    ranked = rank_positives(images.astype(dtype), texts.astype(dtype), labels, text_labels, "euclidean")
    scores = -squared_distances(images, texts)
    relevant = labels[:, None] == text_labels[None]
    for direction, s, r in zip(ranked, (scores, scores.T), (relevant, relevant.T), strict=True):
        expected = [full_sort(s[query], r[query]) for query in range(len(s))]
        assert per_query(direction) == [query.ranks for query in expected]
        assert direction.first.tolist() == [query.first for query in expected]
        assert direction.optimistic.tolist() == [query.optimistic for query in expected]
        assert direction.queries.tolist() == list(range(len(s)))
        assert direction.last.tolist() == [query.ranks[-1] for query in expected]
        places = np.split(direction.places, direction.offsets[1:-1])
        assert [row.tolist() for row in places] == [query.places for query in expected]
        precision = [sum(p) / len(p) for p in np.split(direction.hits / direction.ranks, direction.offsets[1:-1])]
        np.testing.assert_allclose(precision, [query.average_precision for query in expected], atol=1e-12)


@given(small_retrieval(), st.integers(0, 2**32), st.sampled_from(["cosine", "euclidean"]))
@settings(deadline=None, max_examples=60)
def test_a_permutation_of_either_side_changes_nothing(retrieval, seed, metric):
    images, texts, labels, text_labels = retrieval
    images, texts = images.astype(np.float32), texts.astype(np.float32)
    random = np.random.default_rng(seed)
    p, q = random.permutation(len(images)), random.permutation(len(texts))
    before = rank_positives(images, texts, labels, text_labels, metric)
    after = rank_positives(images[p], texts[q], labels[p], text_labels[q], metric)
    assert per_query(after[0]) == [per_query(before[0])[i] for i in p]
    assert per_query(after[1]) == [per_query(before[1])[i] for i in q]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_embeddings_rank_as_a_full_sort_of_the_exact_scores(metric, dtype):
    images, texts, labels, text_labels = random_retrieval(dtype=dtype)
    x, z = images.double().numpy(), texts.double().numpy()
    if metric == "cosine":
        scores = (x / np.linalg.norm(x, axis=1)[:, None]) @ (z / np.linalg.norm(z, axis=1)[:, None]).T
    else:
        scores = -squared_distances(x, z)
    ranked = rank_positives(images, texts, labels, text_labels, metric)
    relevant = labels.numpy()[:, None] == text_labels.numpy()[None]
    wrong = 0
    for direction, s, r in zip(ranked, (scores, scores.T), (relevant, relevant.T), strict=True):
        ranks = (s[:, None, :] >= s[:, :, None]).sum(2)
        expected = np.concatenate([np.sort(row[hits]) for row, hits in zip(ranks, r, strict=True)])
        wrong += (direction.ranks != expected).sum()
    # float32 may swap neighbours closer than its precision.
    assert wrong <= (5 if dtype == torch.float32 else 0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tile", [(24, 24), (100, 96), (72, 1000), (255, 2040), (9999, 9999)])
def test_the_tile_changes_nothing(metric, dtype, tile):
    retrieval = random_retrieval(dtype=dtype, seed=1)
    for one, other in zip(rank_positives(*retrieval, metric), rank_positives(*retrieval, metric, tile), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_captions_of_different_pictures_tie_wherever_they_stand(dtype):
    images, texts, labels, text_labels = random_retrieval(100, 1, 300, dtype, seed=2)
    copies = texts.repeat(7, 1)
    image_to_text, text_to_image = rank_positives(images, copies, labels, text_labels.repeat(7))
    once = rank_positives(images, texts, labels, text_labels)
    np.testing.assert_array_equal(image_to_text.ranks, np.repeat(once[0].ranks * 7, 7))
    np.testing.assert_array_equal(text_to_image.ranks, np.tile(once[1].ranks, 7))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_many_positives_a_query_rank_the_same_by_sorting_and_by_comparing(metric, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(-2, 3, (500, 4), generator=generator).double()
    texts = torch.randint(-2, 3, (2100, 4), generator=generator).double()
    labels = torch.randint(0, 4, (500,), generator=generator), torch.randint(0, 4, (2100,), generator=generator)
    assert counting._SORT_FROM < 250
    by_sorting = rank_positives(images, texts, *labels, metric)
    monkeypatch.setattr(counting, "_SORT_FROM", 10**6)
    by_comparing = rank_positives(images, texts, *labels, metric)
    assert by_sorting[0].positives.max() > 250
    for one, other in zip(by_sorting, by_comparing, strict=True):
        assert_equal(one, other)


def test_a_positive_ranks_behind_every_other_item_of_equal_score():
    image_to_text, _ = rank_positives(np.eye(2), np.eye(2)[[0, 0, 0, 1]], np.arange(2), np.array([0, 1, 1, 1]))
    assert per_query(image_to_text) == [[3], [1, 4, 4]]


def test_tied_positives_are_not_in_each_others_way_to_the_first_hit():
    image_to_text, _ = rank_positives(np.eye(2), np.eye(2)[[0, 0, 0, 1]], np.arange(2), np.array([0, 0, 1, 1]))
    assert per_query(image_to_text) == [[3, 3], [1, 4]]
    assert image_to_text.first.tolist() == [2, 1]
    assert image_to_text.hits.tolist() == [2, 2, 1, 2]


def test_a_zero_row_has_cosine_zero_with_everything():
    texts = np.array([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    image_to_text, text_to_image = rank_positives(np.array([[1.0, 0.0]] * 3), texts, np.arange(3), np.arange(3))
    assert image_to_text.ranks.tolist() == [2, 1, 3]
    assert text_to_image.ranks.tolist() == [3, 3, 3]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_does_not_depend_on_the_scale_of_a_row(scale):
    images, texts, labels, text_labels = random_retrieval(40)
    scaled = rank_positives(images * scale, texts / scale, labels, text_labels)
    for one, other in zip(rank_positives(images, texts, labels, text_labels), scaled, strict=True):
        assert_equal(one, other)


def test_no_more_than_a_tile_of_scores_exists_and_few_are_computed_twice(monkeypatch):
    sizes = []
    product = torch.mm

    def counted(first, second, out):
        sizes.append(out.numel())
        return product(first, second, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    rank_positives(*random_retrieval(2000, 5, 8))
    assert max(sizes) <= 240 * 2016
    assert sum(sizes) < 1.4 * 2000 * 10_000
