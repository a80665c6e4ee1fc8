"""The table of queries: exactly consistent with the metrics, and right by a look at all scores."""

import numpy as np
import pytest

from crosspair.cli import main
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, Protocol, arrange, find_protocol
from crosspair.evaluation.published import FixedSplit
from crosspair.evaluation.query_table import COLUMNS, query_table
from crosspair.evaluation.similarities import Similarities

FOLDS = FixedSplit("two-fold", "", "", num_images=20, captions=3, folds=2)
PROTOCOLS = [PLAIN, FOLDS, find_protocol("cub"), Protocol("extra", text_to_image=("mAP", "R@1"))]


def data(images=20, each=3, per_label=1, levels=None, seed=0):
    """Embeddings; `levels` rounds them to a few values, which brings ties."""
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(images), each)
    centres = random.normal(size=(images, 3))
    texts = centres[rows] + random.normal(size=(len(rows), 3))
    if levels:
        centres, texts = np.round(centres * levels) / levels + 0.1, np.round(texts * levels) / levels + 0.1
    labels = np.arange(images) // per_label
    names = tuple(f"{row}.jpg" for row in range(images)), tuple(f"{row}#{n}" for n, row in enumerate(rows))
    return Embeddings.checked(centres, texts, labels, labels[rows], None if per_label > 1 else rows, *names)


def frame(protocol, embeddings, captions=None, **options):
    found = protocol.evaluate(embeddings, **options)
    return found, query_table(found, arrange(protocol, embeddings), captions).to_pandas()


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("levels", [None, 1])
def test_its_means_are_the_printed_metrics(protocol, metric, levels):
    found, table = frame(protocol, data(per_label=2 if protocol.name == "cub" else 1, levels=levels), metric=metric)
    assert list(table.columns) == list(COLUMNS)
    for direction, result in found.result.directions.items():
        some = table[table.direction == direction]
        for k in (1, 5, 10):
            assert (some["rank"] <= k).mean() * 100 == pytest.approx(result.recall(k), abs=1e-9)
        assert some.average_precision.mean() * 100 == pytest.approx(result.value("mAP"), abs=1e-9)
        assert some["rank"].median() == result.value("median_rank")
        assert some.positives.tolist() == result.ranks.positives.tolist()
    assert ((table["rank"] == 1) == ~(table.score <= table.best_wrong_score)).all()
    assert ((table.rank_with_ties_for == 1) == ~(table.score < table.best_wrong_score)).all()
    assert (table["rank"] >= table.rank_with_ties_for).all()
    if levels:
        assert (table["rank"] > table.rank_with_ties_for).any()
    for number, fold in enumerate(found.folds, 1):
        some = table[(table.fold == number) & (table.direction == "text_to_image")]
        assert (some["rank"] == 1).mean() * 100 == pytest.approx(fold.text_to_image.recall(1))


@pytest.mark.parametrize("protocol", [PLAIN, FOLDS], ids=lambda protocol: protocol.name)
def test_the_items_are_the_best_of_all_scores(protocol):
    embeddings = data()
    _, table = frame(protocol, embeddings, captions=[f"words {row}" for row in range(60)])
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (embeddings.images, embeddings.texts)]
    scores = unit[1] @ unit[0].T
    some = table[table.direction == "text_to_image"]
    assert some.query_row.tolist() == list(range(60))
    for row in some.itertuples():
        among = np.arange(10) + 10 * (row.query_row // 30) if protocol is FOLDS else np.arange(20)
        wrong = among[among != row.query_row // 3]
        best = wrong[scores[row.query_row, wrong].argmax()]
        assert (row.item, row.item_row) == (f"{row.query_row // 3}.jpg", row.query_row // 3)
        assert (row.best_wrong, row.best_wrong_row) == (f"{best}.jpg", best)
        assert row.query == embeddings.text_names[row.query_row]
        assert row.text == f"words {row.query_row}"
        assert row.label == row.query_row // 3
        assert row.score == pytest.approx(scores[row.query_row, row.item_row], abs=1e-6)
        assert row.best_wrong_score == pytest.approx(scores[row.query_row, best], abs=1e-6)
    assert table[table.direction == "image_to_text"].text.isna().all()


def test_rows_are_those_of_the_split_where_a_protocol_leaves_captions_out():
    embeddings = data(each=4)
    _, table = frame(FOLDS, embeddings, captions=[f"words {row}" for row in range(80)])
    texts = table[table.direction == "text_to_image"]
    assert texts.query_row.tolist() == [row for row in range(80) if row % 4 < 3]
    assert texts["query"].tolist() == [embeddings.text_names[row] for row in texts.query_row]
    assert texts.text.tolist() == [f"words {row}" for row in texts.query_row]
    images = table[table.direction == "image_to_text"]
    assert images.query_row.tolist() == list(range(20))
    assert (images.item_row // 4 == images.query_row).all()


def test_a_gallery_without_a_wrong_item_has_none():
    one = Embeddings.checked(np.eye(1, 3), np.eye(1, 3), [0], [0])
    _, table = frame(PLAIN, one)
    assert table.best_wrong.isna().all()
    assert table.best_wrong_row.isna().all()
    assert table.best_wrong_score.isna().all()


def test_what_was_not_scored_is_the_worst_and_the_first_of_it_is_named():
    scores = np.full((3, 3), -np.inf)
    scores[0], scores[1, 2] = [3.0, 2.0, 1.0], 5.0
    _, table = frame(PLAIN, Similarities.checked(scores, np.arange(3), np.arange(3)), directions=("image_to_text",))
    assert table["rank"].tolist() == [1, 3, 3]
    assert table.item_row.tolist() == [0, 1, 2]
    assert table.best_wrong_row.tolist() == [1, 2, 0]
    assert table.best_wrong_score.tolist() == [2.0, 5.0, -np.inf]


def test_distractors_are_no_queries_and_one_direction_is_one():
    random = np.random.default_rng(0)
    embeddings = Embeddings.checked(
        random.normal(size=(4, 3)), random.normal(size=(4, 3)), np.array([0, 1, 2, 9]), np.array([0, 1, 2, 8])
    )
    _, table = frame(PLAIN, embeddings, distractors=True, directions=("image_to_text",))
    assert table.direction.tolist() == ["image_to_text"] * 3
    assert table.query_row.tolist() == [0, 1, 2]
    assert table.best_wrong_row.max() <= 3


def test_the_command_writes_it_whole_or_not_at_all(tmp_path, capsys):
    import pandas

    embeddings = data()
    arrays = {"image_embeddings": embeddings.images, "text_embeddings": embeddings.texts}
    labels = {"image_labels": embeddings.image_labels, "text_labels": embeddings.text_labels}
    np.savez(tmp_path / "e.npz", **arrays, **labels)
    path = tmp_path / "new" / "queries.parquet"
    assert main(["evaluate", "--embeddings", str(tmp_path / "e.npz"), "--queries", str(path)]) == 0
    assert f"queries: {path} (80 rows)" in capsys.readouterr().out
    table = pandas.read_parquet(path)
    assert len(table) == 80
    assert table["query"][0] == "image-0"
    assert [file.name for file in path.parent.iterdir()] == ["queries.parquet"]
    arrays["image_embeddings"] = arrays["image_embeddings"] * np.nan
    np.savez(tmp_path / "e.npz", **arrays, **labels)
    before = path.read_bytes()
    assert main(["evaluate", "--embeddings", str(tmp_path / "e.npz"), "--queries", str(path)]) == 2
    assert path.read_bytes() == before
