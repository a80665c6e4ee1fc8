"""What the report is made of: charts, groups of queries, neighbours and hubs, the layout of the map."""

import re

import numpy as np
import pytest

from crosspair.report.charts import Estimate, Series, count_chart, group_chart, histogram, line_chart
from crosspair.report.examples import choose_queries, confident_mistakes, hardest_queries
from crosspair.report.figures import recall_by, sample_similarities, wilson
from crosspair.report.hubness import Hubness, count_retrieved, nearest
from crosspair.report.map import kept_neighbours, tsne


def test_examples_come_from_all_groups_as_far_as_they_go():
    first = np.array([1] * 20 + [4] * 2 + [50] * 20)
    chosen = choose_queries(first, 12, seed=3)
    assert [name for name, _ in chosen].count("found among the first ten") == 2
    assert len({row for _, row in chosen}) == 12
    assert chosen == choose_queries(first, 12, seed=3)
    assert len(choose_queries(first[:5], 12)) == 5


def test_the_hardest_queries_are_one_of_each_label_and_none_that_was_found():
    first, labels = np.array([9, 30, 1, 20, 30, 2]), np.array([0, 1, 2, 3, 1, 0])
    assert hardest_queries(first, labels, 2) == [1, 3]
    assert hardest_queries(first, labels, 9) == [1, 3, 0]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_confident_mistakes_are_the_wrong_first_items_nearest_to_their_queries(metric):
    gallery = np.eye(4)
    queries = np.array([[1, 0.1, 0, 0], [1, 0.2, 0, 0], [0, 1, 0, 0.05], [0, 0, 1, 0.5], [0, 0, 0, 1]])
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    labels = np.array([5, 6, 6, 5, 3])
    found = nearest(queries, gallery, labels, np.arange(4), metric, np.arange(5), top=2)
    first = np.array([3, 3, 3, 3, 1])
    assert confident_mistakes(found, first, labels, metric, 4) == [2, 0]  # 1 and 3 repeat an item and a label


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_a_full_sort_with_the_wrong_ones_of_a_tie_first(metric):
    random = np.random.default_rng(0)
    queries, gallery = np.round(random.normal(size=(300, 3))), np.round(random.normal(size=(70, 3)))
    labels, gallery_labels = random.integers(0, 9, 300), random.integers(0, 9, 70)
    rows = np.arange(0, 300, 2)
    found = nearest(queries, gallery, labels, gallery_labels, metric, rows, top=1)
    for place, row in enumerate(rows):
        scores = gallery @ queries[row] if metric == "cosine" else -np.linalg.norm(gallery - queries[row], axis=1)
        assert abs(found.scores[place, 0]) == pytest.approx(abs(scores.max()), abs=1e-5)
        assert found.relevant[place, 0] == (gallery_labels[found.items[place, 0]] == labels[row])
    tied = nearest(np.ones((1, 2)), np.ones((4, 2)), np.array([1]), np.array([1, 0, 1, 0]), "cosine", np.arange(1), 2)
    assert tied.items.tolist() == [[1, 3]]
    assert len(nearest(queries, gallery, labels, gallery_labels, metric, rows, 99).items[0]) == 70


def test_hubs_are_counted_with_how_often_they_are_relevant():
    gallery = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    queries = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [0.1, 1.0]])
    found = nearest(queries, gallery, np.array([0, 0, 1, 1]), np.arange(3), "cosine", np.arange(4), top=1)
    hubness = count_retrieved(found)
    assert hubness.counts.tolist() == [3, 1, 0]
    assert hubness.relevant.tolist() == [2, 1, 0]
    assert hubness.hubs(5) == [0, 1]
    assert hubness.never == pytest.approx(1 / 3)
    assert hubness.share_of_most_retrieved(0.34) == pytest.approx(3 / 4)


def test_skewness_is_zero_without_hubs_and_that_of_scipy_with_them():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    counts = np.random.default_rng(0).poisson(2, 500) ** 2
    assert Hubness(counts, counts, 10).skewness == pytest.approx(stats.skew(counts))
    assert Hubness(np.full(5, 3), np.zeros(5, int), 10).skewness == 0


def test_the_map_keeps_clusters_together_and_is_the_same_every_time():
    random = np.random.default_rng(0)
    cluster = np.arange(90) % 3
    points = random.normal(size=(3, 20))[cluster] * 5 + random.normal(size=(90, 20))
    places = tsne(points)
    centres = np.stack([places[cluster == one].mean(0) for one in range(3)])
    assert (np.linalg.norm(places[:, None] - centres, axis=2).argmin(1) == cluster).all()
    assert kept_neighbours(points, places) > kept_neighbours(points, random.normal(size=(90, 2))) + 0.3
    np.testing.assert_array_equal(places, tsne(points))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12])
def test_the_map_of_few_or_equal_points_is_finite(count):
    points = np.random.default_rng(0).normal(size=(count, 6))
    points[count // 2 :] = points[0]
    places = tsne(points)
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()
    assert np.isfinite(tsne(np.ones((count, 6)))).all()


def test_sampled_similarities_are_those_of_matching_and_of_other_pairs():
    labels = np.array([3, 1, 3, 2])
    text_labels = np.array([1, 2, 3, 3, 1])
    matching, other = sample_similarities(np.eye(4)[labels], np.eye(4)[text_labels], labels, text_labels, "cosine")
    assert len(matching) == 2 + 2 + 2 + 1
    assert (set(matching), set(other)) == ({1}, {0})


def test_groups_hold_every_query_once_and_none_is_tiny():
    random = np.random.default_rng(0)
    values, first = random.poisson(9, 1000) + 1, random.integers(1, 20, 1000)
    groups = recall_by(values, first, (1, 5))
    assert 3 <= len(groups) <= 6
    assert sum(group.queries for group in groups) == 1000
    assert min(group.queries for group in groups) > 1000 / 12
    for group in groups:
        low, *rest = map(int, re.split("\u2013", group.name))
        among = (values >= low) & (values <= (rest or [low])[0])
        assert group.recalls[5].value == pytest.approx(100 * (first[among] <= 5).mean())
    assert len(recall_by(np.full(9, 4), np.ones(9), (1,))) == 1
    few_at_the_end = np.repeat([1, 2, 9], [500, 490, 10])
    assert [group.name for group in recall_by(few_at_the_end, first, (1,))] == ["1", "2\u20139"]


def test_wilson_s_interval_is_the_textbook_s_and_stays_within_bounds():
    estimate = wilson(8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((49.02, 94.33), abs=0.01)
    assert (wilson(0, 5).low, wilson(5, 5).high) == pytest.approx((0, 100))


def test_a_chart_leaves_out_what_is_not_finite_and_thins_what_can_not_be_seen():
    chart = line_chart("t", [Series("a", range(5000), [float("inf"), *range(4999)])], "x", "y")
    assert not re.search("inf|nan", chart)
    assert chart.count(",") < 400
    assert line_chart("t", [Series("a", [1], [float("nan")])], "x", "y") == ""


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-9, 2e-9], [-3e6, 8e6]])
def test_charts_of_any_range_have_axes(values):
    assert "<text" in line_chart("t", [Series("a", range(len(values)), values)], "x", "y")
    assert "<text" in histogram("t", {"a": np.array(values)}, "x")


@pytest.mark.parametrize("most", [0, 1, 39, 41, 12_345])
def test_every_item_is_in_one_bar_whatever_the_largest_count(most):
    chart = count_chart("t", np.array([0, 0, most]), "times", "items")
    assert f"<td>{most:,}</td>" in chart
    assert not re.search("inf|nan", chart)


def test_a_logarithmic_axis_places_powers_of_ten_evenly():
    chart = line_chart("t", [Series("a", [1, 10, 100, 1000], [0, 1, 2, 3])], "x", "y", log_x=True)
    places = [float(x) for x in re.findall(r"([\d.]+),", re.search(r'points="([^"]+)"', chart)[1])]
    assert np.allclose(np.diff(places), np.diff(places)[0], atol=0.2)


def test_a_chart_of_groups_tells_its_numbers_and_escapes_names():
    chart = group_chart("<t>", ["1", "<2>"], [5, 6], {"R@1": [Estimate(10, 5, 15), Estimate(20, 15, 25)]}, "x", "y")
    assert "<2>" not in chart
    assert "<t>" not in chart
    assert "<td>20.0</td>" in chart
