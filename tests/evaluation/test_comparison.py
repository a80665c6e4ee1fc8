"""Comparisons of stored results: groups, differences, and what can't be compared."""

from dataclasses import replace

import numpy as np
import pytest

from crosspair import UserError
from crosspair.evaluation.clusters import RSUM
from crosspair.evaluation.comparison import compare
from crosspair.evaluation.protocols import find_protocol
from tests.fixtures.results import stored


def test_seeds_of_a_recipe_are_a_group_with_mean_and_deviation(comparison):
    assert [(row.name, row.seeds) for row in comparison.rows] == [
        ("small_model", (1, 2, 3)),
        ("other", (4, 5)),
        ("theirs.npz", (None,)),
    ]
    name = ("text_to_image", "R@5")
    expected = [stored("a", seed=seed).evaluation.result.text_to_image.recall(5) for seed in (1, 2, 3)]
    assert comparison.rows[0].values[name] == pytest.approx(expected)
    assert comparison.rows[0].mean(name) == pytest.approx(np.mean(expected))
    assert comparison.rows[0].deviation(name) == pytest.approx(np.std(expected, ddof=1))
    assert comparison.rows[2].deviation(name) is None


def test_differences_are_those_to_the_first_group(comparison):
    first, other, worst = comparison.rows
    assert first.differences == {}
    for name in comparison.names:
        assert other.differences[name].value == pytest.approx(other.mean(name) - first.mean(name))
        assert worst.differences[name].value < other.differences[name].value < 0
        low, high = worst.intervals[name]
        assert low <= worst.mean(name) <= high
    assert worst.differences[RSUM].p == pytest.approx(1 / 301)


def test_the_metrics_are_those_the_protocol_reports():
    runs = [stored("a", protocol=find_protocol("rstpreid")), stored("b", 2, protocol=find_protocol("rstpreid"))]
    found = compare(runs, permutations=50)
    assert [metric for _, metric in found.names] == ["R@1", "R@5", "R@10", "mAP", "mINP"]
    assert compare([stored("a"), stored("b")], permutations=50).names[-1] == RSUM


def test_recipes_of_one_name_that_differ_are_told_apart_by_their_runs():
    runs = [stored("runs/a", recipe="small@1"), stored("runs/b", seed=1, recipe="small@2")]
    runs.append(stored("runs/c", seed=2, recipe="small@1"))
    assert [row.name for row in compare(runs, permutations=50).rows] == ["runs/a and 1 more", "runs/b"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checksum": "other"}, "b was evaluated on other pictures or captions than a"),
        ({"labels_checksum": "other", "checksum": None}, "b was evaluated on other pictures or captions than a"),
        ({"protocol": "coco-5k"}, "b was evaluated by protocol coco-5k, a by protocol plain; evaluate both alike"),
        ({"metric": "euclidean"}, "b was evaluated by euclidean, a by cosine"),
    ],
)
def test_other_queries_or_protocols_are_not_compared(changes, sentence):
    other = stored("b")
    with pytest.raises(UserError, match=sentence):
        compare([stored("a"), replace(other, facts=other.facts | changes)])


@pytest.mark.parametrize("protocol", ["plain", "rstpreid", "cub", "flowers"])
@pytest.mark.parametrize(("renumbered", "with_images"), [(True, True), (False, False), (True, False)])
def test_how_labels_are_numbered_and_what_else_is_known_makes_no_difference(protocol, renumbered, with_images):
    """One clustering of the queries serves all results: the same intervals and p, in either order."""
    kind = {"protocol": find_protocol(protocol)}
    first, as_it_is = stored("a", **kind), stored("b", 1.3, 4, **kind)
    other = stored("b", 1.3, 4, renumbered=renumbered, with_images=with_images, **kind)
    expected, found = (compare([first, each], permutations=200) for each in (as_it_is, other))
    assert found.rows == expected.rows
    assert compare([other, first], permutations=200).rows == compare([as_it_is, first], permutations=200).rows
    itself = compare([first, stored("c", renumbered=renumbered, with_images=with_images, **kind)], permutations=200)
    for difference in itself.rows[1].differences.values():
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_other_queries_are_refused_whatever_their_facts_say():
    """Results whose files agree in all that is told of them, and were asked other things."""
    first = stored("a")
    direction = first.evaluation.result.image_to_text
    shuffled = replace(
        first,
        path=first.path / "b",
        facts=first.facts | {"model": "b"},
        evaluation=replace(
            first.evaluation, query_labels={**first.evaluation.query_labels, "text_to_image": np.arange(120) % 40}
        ),
    )
    with pytest.raises(
        UserError, match="b was asked other queries than a, or the same in another order; evaluate both"
    ):
        compare([first, shuffled])
    one_way = replace(
        shuffled,
        evaluation=replace(
            first.evaluation,
            result=replace(first.evaluation.result, text_to_image=None),
            query_labels={"image_to_text": first.evaluation.query_labels["image_to_text"]},
        ),
    )
    with pytest.raises(UserError, match="b was evaluated image to text, a image to text and text to image"):
        compare([first, one_way])
    larger = replace(direction, ranks=replace(direction.ranks, gallery_size=999))
    among_more = replace(
        shuffled,
        evaluation=replace(first.evaluation, result=replace(first.evaluation.result, image_to_text=larger)),
    )
    with pytest.raises(UserError, match="b was asked other queries than a"):
        compare([first, among_more])


def test_results_of_one_direction_are_compared_in_it():
    def one_way(result):
        evaluation = result.evaluation
        return replace(
            result,
            evaluation=replace(
                evaluation,
                result=replace(evaluation.result, image_to_text=None),
                query_labels={"text_to_image": evaluation.query_labels["text_to_image"]},
            ),
        )

    both, single = (
        compare([alter(stored("a")), alter(stored("b", 1.5, 3))], permutations=300)
        for alter in (lambda result: result, one_way)
    )
    assert single.names == tuple(("text_to_image", f"R@{k}") for k in (1, 5, 10))
    for name in single.names:
        assert single.rows[1].differences[name] == both.rows[1].differences[name]


def test_one_run_or_the_same_twice_is_no_comparison():
    with pytest.raises(UserError, match="found 1 result to compare; expected two or more runs"):
        compare([stored("a")])
    with pytest.raises(UserError, match="a is given twice; name each run once"):
        compare([stored("a"), stored("b"), stored("a")])
