"""Comparisons of stored results: groups, differences, what can't be compared, and the tables in every format."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crosspair import UserError
from crosspair.evaluation.comparison import compare
from crosspair.evaluation.comparison_tables import describe_groups, to_csv, to_latex, to_markdown, to_text, write_tables
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, find_protocol
from crosspair.evaluation.results import StoredResult
from crosspair.evaluation.uncertainty import RSUM


def stored(name, noise=1.0, seed=0, recipe=None, protocol=PLAIN, **facts):
    """A result of 40 pictures with three texts each."""
    random = np.random.default_rng(seed)
    labels = np.arange(40) // (1 if protocol is PLAIN else 2)
    rows = np.repeat(np.arange(40), 3)
    images = np.random.default_rng(99).normal(size=(40, 5))
    texts = images[rows] + noise * random.normal(size=(120, 5))
    evaluation = protocol.evaluate(Embeddings.checked(images, texts, labels, labels[rows], rows))
    known = {"model": f"{name}/model", "split": "test", "protocol": protocol.name, "metric": "cosine"}
    of_recipe = {"recipe": recipe.split("@")[0], "seed": seed, "recipe_checksum": recipe} if recipe else {}
    known |= {"checksum": "data", "labels_checksum": "labels", **of_recipe, **facts}
    return StoredResult(Path(name) / "evaluation" / "test.json", known, evaluation)


@pytest.fixture(scope="module")
def comparison():
    """Three seeds of a recipe, two of a worse one, and a file of embeddings that is worst."""
    runs = [stored(f"runs/a{seed}", seed=seed, recipe="small_model") for seed in (1, 2, 3)]
    runs += [stored(f"runs/b{seed}", 1.6, seed, recipe="other") for seed in (4, 5)]
    runs += [stored("x", 3, 6, model=None, checksum=None, embeddings="theirs.npz")]
    return compare(runs, resamples=300)


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
    found = compare(runs, resamples=50)
    assert [metric for _, metric in found.names] == ["R@1", "R@5", "R@10", "mAP", "mINP"]
    assert compare([stored("a"), stored("b")], resamples=50).names[-1] == RSUM


def test_recipes_of_one_name_that_differ_are_told_apart_by_their_runs():
    runs = [stored("runs/a", recipe="small@1"), stored("runs/b", seed=1, recipe="small@2")]
    runs.append(stored("runs/c", seed=2, recipe="small@1"))
    assert [row.name for row in compare(runs, resamples=50).rows] == ["runs/a and 1 more", "runs/b"]


def test_a_table_for_every_reader(comparison, tmp_path):
    texts = {"text": to_text(comparison), "md": to_markdown(comparison), "tex": to_latex(comparison)}
    for text in texts.values():
        assert "text to image R@10" in text
        assert "theirs.npz" in text
        assert "protocol plain" in text
        assert "p = 0." in text
        assert "other: seeds 4, 5" in text
    values, differences = [block.splitlines() for block in texts["md"].split("\n\n")[:2]]
    assert len(values) == 2 + 3
    assert len(differences) == 2 + 2
    assert len({line.count("|") for line in values}) == 1
    assert "±" in values[2]
    assert "[" in values[4]
    assert r"small\_model" in texts["tex"]
    assert texts["tex"].count(r"\begin{tabular}") == texts["tex"].count(r"\end{tabular}") == 2
    assert r"$\pm$" in texts["tex"]
    assert describe_groups(comparison.rows) == "small_model: seeds 1, 2, 3\nother: seeds 4, 5"
    written = write_tables(tmp_path / "tables" / "v1.2", comparison)
    assert [path.name for path in written] == ["v1.2.md", "v1.2.csv", "v1.2.tex"]
    assert written[0].read_text() == texts["md"]


def test_the_csv_holds_every_number(comparison):
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(rows) == 3 * len(comparison.names)
    row = next(r for r in rows if r["name"] == "other" and (r["direction"], r["metric"]) == ("text_to_image", "R@1"))
    difference = comparison.rows[1].differences["text_to_image", "R@1"]
    assert float(row["difference"]) == difference.value
    assert float(row["p"]) == difference.p
    assert float(row["standard_deviation"]) == comparison.rows[1].deviation(("text_to_image", "R@1"))
    assert (row["runs"], row["seeds"], row["split"], row["protocol"]) == ("2", "4 5", "test", "plain")
    assert rows[0]["difference"] == rows[-1]["seeds"] == ""


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


def test_one_run_or_the_same_twice_is_no_comparison():
    with pytest.raises(UserError, match="found 1 result to compare; expected two or more runs"):
        compare([stored("a")])
    with pytest.raises(UserError, match="a is given twice; name each run once"):
        compare([stored("a"), stored("b"), stored("a")])
