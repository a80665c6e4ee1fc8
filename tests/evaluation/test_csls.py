"""Ranking with hubs held down."""

import json

import numpy as np
import pytest

from crosspair.cli import main
from crosspair.errors import UserError
from crosspair.evaluation.csls import csls_vectors, evaluate_csls
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, find_protocol
from crosspair.evaluation.published import FixedSplit
from crosspair.evaluation.ranking import rank_positives
from crosspair.evaluation.similarities import Similarities


def noisy_pairs(num_images=40, texts_each=3, dimension=12, seed=0):
    random = np.random.default_rng(seed)
    images = random.normal(size=(num_images, dimension)) + 1.5 * random.normal(size=(1, dimension))
    texts = np.repeat(images, texts_each, 0) + random.normal(size=(num_images * texts_each, dimension))
    labels = np.arange(num_images)
    return images, texts, labels, np.repeat(labels, texts_each)


def published_scores(queries, gallery, neighbours):
    """CSLS as its paper writes it."""
    queries, gallery = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery))
    cosines = queries @ gallery.T
    of_queries = np.sort(cosines, 1)[:, ::-1][:, :neighbours].mean(1)
    of_items = np.sort(cosines.T, 1)[:, ::-1][:, :neighbours].mean(1)
    return 2 * cosines - of_queries[:, None] - of_items[None]


@pytest.mark.parametrize("neighbours", [1, 10, 1000])
def test_distances_order_as_the_published_scores(neighbours):
    images, texts, _, _ = noisy_pairs()
    queries, gallery = csls_vectors(images, texts, neighbours)
    distances = np.linalg.norm(queries[:, None] - gallery[None], axis=2)
    scores = published_scores(images, texts, neighbours)
    np.testing.assert_array_equal(np.argsort(distances, 1), np.argsort(-scores, 1))
    # More than the order: score = constant of the query - squared distance.
    offsets = scores + distances**2
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1], offsets.shape), atol=1e-12)


def test_blocks_change_nothing(monkeypatch):
    images, texts, _, _ = noisy_pairs()
    whole = csls_vectors(texts, images)
    monkeypatch.setattr("crosspair.evaluation.csls._BLOCK", 7)
    for one, other in zip(whole, csls_vectors(texts, images), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-15)


def test_an_empty_row_has_cosine_0_with_everything():
    queries, gallery = csls_vectors(np.eye(3)[:2], np.array([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0]]), neighbours=2)
    squared = ((queries[:, None] - gallery[None]) ** 2).sum(2)
    # r is 0, 1/2 and -1/2: scores 2 cos - r, less those of the empty row.
    np.testing.assert_allclose(squared[:, :1] - squared, [[0, 1.5, -1.5], [0, -0.5, 0.5]], atol=1e-12)


@pytest.mark.parametrize(("given", "kept"), [(np.float16, np.float32), (np.float32, np.float32), (float, float)])
def test_vectors_keep_the_wider_type(given, kept):
    queries, gallery = csls_vectors(np.ones((2, 3), given), np.ones((4, 3), given))
    assert queries.dtype == gallery.dtype == kept


@pytest.mark.parametrize("texts_each", [1, 3])
def test_recalls_are_those_of_a_full_sort_in_each_direction(texts_each):
    images, texts, labels, text_labels = noisy_pairs(texts_each=texts_each)
    result = evaluate_csls(PLAIN, Embeddings.checked(images, texts, labels, text_labels))
    right = labels[:, None] == text_labels[None]
    for found, queries, gallery, matches in (
        (result.image_to_text, images, texts, right),
        (result.text_to_image, texts, images, right.T),
    ):
        order = np.argsort(-published_scores(queries, gallery, 10), 1)
        first = np.take_along_axis(matches, order, 1).argmax(1)
        assert [found.recall(k) for k in (1, 5, 10)] == pytest.approx([100 * (first < k).mean() for k in (1, 5, 10)])


def test_a_hub_is_held_down():
    """A text near to every picture takes the first place of all of them, and of none once its nearness is counted."""
    images = np.pad(np.eye(20) + 0.6, ((0, 0), (0, 1)))
    hub = np.append(np.ones(20), 0)
    texts = np.concatenate([images + np.append(np.zeros(20), 1.3), hub[None]])
    embeddings = Embeddings.checked(images, texts, np.arange(20), np.append(np.arange(20), 0))
    assert PLAIN.evaluate(embeddings).result.image_to_text.recall(1) == 5  # the one that the hub describes
    assert evaluate_csls(PLAIN, embeddings).image_to_text.recall(1) == 100


def test_each_fold_is_ranked_by_its_own_queries():
    protocol = FixedSplit("halves", "two folds", "here", num_images=60, folds=2)
    images, texts, labels, text_labels = noisy_pairs(num_images=60)
    pooled = evaluate_csls(protocol, Embeddings.checked(images, texts, labels, text_labels))
    recalls = []
    for half in (labels < 30, labels >= 30):
        of_texts = np.repeat(half, 3)
        part = Embeddings.checked(images[half], texts[of_texts], labels[half], text_labels[of_texts])
        recalls.append(evaluate_csls(PLAIN, part).text_to_image.recall(1))
    assert pooled.text_to_image.recall(1) == pytest.approx(np.mean(recalls))


def test_a_protocol_of_lists_is_refused():
    images, texts, labels, text_labels = noisy_pairs()
    with pytest.raises(UserError, match="eccv-caption judges by its own lists; evaluate it without --csls"):
        evaluate_csls(find_protocol("eccv-caption"), Embeddings.checked(images, texts, labels, text_labels))


def test_such_a_protocol_is_refused_before_anything_is_read(capsys):
    assert main(["evaluate", "no-run", "--data", "no-data", "--protocol", "eccv-caption", "--csls"]) == 2
    assert "judges by its own lists" in capsys.readouterr().err


def test_the_command_prints_and_stores_it_beside_the_plain_numbers(tmp_path, capsys):
    images, texts, labels, text_labels = noisy_pairs()
    file, output = tmp_path / "embeddings.npz", tmp_path / "result.json"
    np.savez(file, image_embeddings=images, text_embeddings=texts, image_labels=labels, text_labels=text_labels)
    main(["evaluate", "--embeddings", str(file), "--output", str(output)])
    plain, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert "CSLS" not in printed
    assert "beside" not in plain
    main(["evaluate", "--embeddings", str(file), "--output", str(output), "--csls"])
    both, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert both["rsum"] == plain["rsum"]
    expected = evaluate_csls(PLAIN, Embeddings.checked(images, texts, labels, text_labels))
    assert both["beside"]["CSLS"] == expected.to_dict()
    [line] = [line for line in printed.splitlines() if line.startswith("CSLS")]
    assert f"{expected.image_to_text.recall(1):.1f}/" in line


def test_shards_cannot_have_it(tmp_path, capsys):
    arguments = ["evaluate", "--embeddings", "x.npz", "--shard", "1/2", "--part", str(tmp_path / "part.npz")]
    assert main([*arguments, "--csls"]) == 2
    assert "--csls takes all queries together" in capsys.readouterr().err


def test_one_direction_with_distractors_is_that_of_the_queries_alone():
    """Rows that match nothing are in the gallery, and lend no item a neighbour as a query."""
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(30, 6)), random.normal(size=(40, 6))
    labels, text_labels = np.arange(30), np.arange(40) % 25  # the last five images match nothing
    data = Embeddings.checked(images, texts, labels, text_labels)
    both = evaluate_csls(PLAIN, data, distractors=True)
    asked, items = csls_vectors(images[:25], texts)
    expected, _ = rank_positives(asked, items, labels[:25], text_labels, "euclidean")
    np.testing.assert_array_equal(both.image_to_text.ranks.ranks, expected.ranks)
    assert both.image_to_text.ranks.queries.tolist() == list(range(25))
    assert both.text_to_image.ranks.gallery_size == 30
    one = evaluate_csls(PLAIN, data, distractors=True, directions=("text_to_image",))
    assert one.image_to_text is None
    np.testing.assert_array_equal(one.text_to_image.ranks.ranks, both.text_to_image.ranks.ranks)
    with pytest.raises(UserError, match="CSLS is of embeddings"):
        evaluate_csls(PLAIN, Similarities.checked(np.eye(2), np.arange(2), np.arange(2)))
