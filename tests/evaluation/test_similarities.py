"""A matrix of similarities in the place of embeddings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair import UserError, evaluate_retrieval, evaluate_similarities
from crosspair.evaluation import similarities as module
from crosspair.evaluation.counting import Layout
from crosspair.evaluation.embeddings import Embeddings
from crosspair.evaluation.protocols import PLAIN, Task, find_protocol
from crosspair.evaluation.published import FixedSplit
from crosspair.evaluation.ranking import count_ranks, prepare_counting, score_blocks
from crosspair.evaluation.similarities import Similarities, mean_similarities, read_similarities
from crosspair.evaluation.trec import write_trec

FIELDS = ("ranks", "offsets", "queries", "optimistic", "gallery_size")


def cosines(images, texts):
    """The very numbers that embeddings are ranked by."""
    return np.concatenate([block.copy() for _, block in score_blocks(images, texts, "cosine", of_texts=False)])


def retrieval(num_images=300, texts_each=5, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    labels = random.permutation(num_images) // 2
    text_labels = random.permutation(labels.repeat(texts_each))
    images = random.integers(-3, 4, (num_images, 6)).astype(dtype)
    return images, random.integers(-3, 4, (len(text_labels), 6)).astype(dtype), labels, text_labels


def same_ranks(one, other):
    assert list(one) == list(other)
    for name in one:
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(one[name], field), getattr(other[name], field))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(Layout, "of", lambda *_: Layout((24, 48), (24, 24), (24 * 48 * 8 * 2, 1)))
    monkeypatch.setattr(module, "_MOST_COLUMNS", 100)
    monkeypatch.setattr(module, "_PAIRS", 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_cosines_of_embeddings_give_the_ranks_of_the_embeddings(dtype):
    images, texts, *labels = retrieval(dtype=dtype)
    by_matrix = count_ranks(Similarities.checked(cosines(images, texts), *labels).counting())
    same_ranks(by_matrix, count_ranks(prepare_counting(images, texts, *labels)))


def test_every_metric_is_that_of_the_embeddings():
    images, texts, *labels = retrieval()
    extra = ("MRR", "nDCG@5", "mAP@R")
    by_matrix = evaluate_similarities(cosines(images, texts), *labels, (1, 3), "original", extra)
    assert (
        by_matrix.to_dict() == evaluate_retrieval(images, texts, *labels, (1, 3), "cosine", "original", extra).to_dict()
    )
    assert "similarity; ties against the model" in by_matrix.to_table()


@given(
    st.integers(1, 30),
    st.integers(1, 40),
    st.integers(1, 6),
    st.sampled_from([np.float16, np.float32, np.float64, ">f4"]),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=80)
def test_ranks_are_those_of_a_full_sort_also_where_nothing_was_scored(full_sort, images, texts, levels, dtype, seed):
    random = np.random.default_rng(seed)
    matrix = random.integers(-levels, levels, (images, texts)).astype(dtype)
    matrix[random.random(matrix.shape) < 0.3] = -np.inf
    labels, text_labels = random.integers(0, 5, images), random.integers(0, 5, texts)
    relevant = labels[:, None] == text_labels[None]
    if not relevant.any():
        return
    result = evaluate_similarities(matrix, labels, text_labels, distractors=True)
    for direction, s, r in (
        (result.image_to_text, matrix, relevant),
        (result.text_to_image, matrix.T, relevant.T),
    ):
        expected = [full_sort(scores, hits) for scores, hits in zip(s, r, strict=True) if hits.any()]
        assert direction.ranks.ranks.tolist() == [rank for query in expected for rank in query.ranks]
        assert direction.ranks.first.tolist() == [query.first for query in expected]
        assert direction.ranks.optimistic.tolist() == [query.optimistic for query in expected]


def test_mapped_files_in_blocks_give_the_ranks_of_memory(tmp_path, small_blocks, monkeypatch):
    images, texts, labels, text_labels = retrieval()
    matrix = cosines(images, texts)
    for name, array in {"similarities": matrix, "image_labels": labels, "text_labels": text_labels}.items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = read_similarities(tmp_path)
    assert isinstance(mapped.matrices[0].base, np.memmap)
    counting = mapped.counting()
    assert len(counting.pairs()) > 10
    in_blocks = count_ranks(counting)
    assert counting.block_bytes <= 100 * 144 * 4
    monkeypatch.undo()
    same_ranks(in_blocks, count_ranks(prepare_counting(images, texts, labels, text_labels)))
    np.savez(tmp_path / "matrix.npz", similarities=matrix, image_labels=labels, text_labels=text_labels)
    same_ranks(in_blocks, count_ranks(read_similarities(tmp_path / "matrix.npz").counting()))


def test_a_long_job_is_announced_and_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("crosspair.evaluation.cost.LARGE", 1000)
    images, texts, *labels = retrieval()
    evaluate_similarities(cosines(images, texts), *labels, progress=True)
    said = capsys.readouterr().err
    assert "300 pictures x 1,500 texts of a matrix: about" in said
    assert "beyond the matrix" in said
    assert "ranking" in said


def test_folds_are_parts_of_the_matrix():
    images, texts, _, _ = retrieval(60, 5)
    labels = np.arange(60)
    protocol = FixedSplit("three", num_images=60, captions=4, folds=3)
    by_matrix = protocol.evaluate(Similarities.checked(cosines(images, texts), labels, labels.repeat(5)))
    by_embeddings = protocol.evaluate(Embeddings.checked(images, texts, labels, labels.repeat(5)))
    assert len(by_matrix.folds) == 3
    assert by_matrix.to_dict() == by_embeddings.to_dict()
    assert by_matrix.result.metric == "similarity"


def test_a_protocol_that_averages_texts_takes_one_column_a_label():
    random = np.random.default_rng(0)
    labels = np.arange(12) // 3
    found = find_protocol("cub").evaluate(Similarities.checked(random.normal(size=(12, 4)), labels, np.arange(4)))
    assert set(found.result.to_dict()) >= {"image_to_text", "text_to_image"}
    with pytest.raises(UserError, match="label 0 has 2 texts, and their mean can't be found from similarities"):
        find_protocol("cub").evaluate(Similarities.checked(np.eye(2), [0, 0], [0, 0]))
    with pytest.raises(UserError, match="leave metric 'euclidean' out"):
        PLAIN.evaluate(Similarities.checked(np.eye(2), [0, 1], [0, 1]), "euclidean")


def test_rankings_for_other_tools_are_written_from_the_matrix(tmp_path):
    images, texts, *labels = retrieval(20, 2)
    for name, data in (
        ("matrix", Similarities.checked(cosines(images, texts), *labels)),
        ("embeddings", Embeddings.checked(images, texts, *labels)),
    ):
        write_trec(tmp_path / name, PLAIN.arrange(Task(data)))
    for direction in ("image_to_text", "text_to_image"):
        for suffix in ("run", "qrels"):
            one, other = ((tmp_path / f"{name}.{direction}.{suffix}").read_text() for name in ("matrix", "embeddings"))
            assert one == other


def test_the_mean_of_matrices_is_that_of_their_sum(small_blocks):
    images, texts, *labels = retrieval(100, 2)
    more = np.random.default_rng(1).normal(size=(100, 200)).astype(np.float16)
    one, other = Similarities.checked(cosines(images, texts), *labels), Similarities.checked(more, *labels)
    mean = mean_similarities([one, other])
    expected = ((cosines(images, texts).astype(np.float64) + more) / 2).astype(np.float32)
    same_ranks(count_ranks(mean.counting()), count_ranks(Similarities.checked(expected, *labels).counting()))
    with pytest.raises(UserError, match="matrix 2 has other text_labels than the first"):
        mean_similarities([one, Similarities.checked(more, labels[0], labels[1][::-1])])
    with pytest.raises(UserError, match="found no similarities"):
        mean_similarities([])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"similarities": np.eye(3) * [[1], [np.nan], [1]]},
            "hold NaN in row 1, column 1; expected numbers, with -inf",
        ),
        ({"similarities": np.array([[0, 0, 0], [0, 0, np.inf], [0, 0, 0.0]])}, "hold infinity in row 1, column 2"),
        ({"similarities": np.eye(3)[:2]}, r"image_labels have shape \(3,\); expected one label for each of the 2"),
        ({"similarities": np.zeros(3)}, r"similarities have shape \(3,\); expected \[images, texts\]"),
        ({"similarities": np.zeros((0, 3))}, r"shape \(0, 3\)"),
        ({"similarities": np.eye(3, dtype=int)}, "similarities are int64; expected floating point numbers"),
        ({"similarities": np.eye(3, dtype=complex)}, "similarities are complex128"),
        ({"similarities": np.eye(3, dtype=object)}, "similarities hold Python objects"),
        ({"similarities": torch.eye(3).to_sparse()}, "similarities are a sparse or nested tensor"),
        ({"similarities": np.zeros((4, 3)), "text_labels": np.arange(4)}, "give the transposed matrix"),
        ({"text_labels": np.array([0, 1, 1])}, "row 2 of the rows with label 2 matches no row of the columns"),
        ({"ks": 5}, "ks are 5"),
        ({"extra": "mINP"}, "extra is 'mINP'"),
        ({"directions": ()}, r"directions are \(\)"),
    ],
)
def test_what_can_not_be_evaluated_is_one_sentence(changes, sentence):
    given = {"similarities": np.eye(3), "image_labels": np.arange(3), "text_labels": np.arange(3)} | changes
    with pytest.raises(UserError, match=sentence) as error:
        evaluate_similarities(**given)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


def test_nan_in_one_of_several_matrices_is_named_by_its_file(tmp_path):
    wrong = np.eye(3)
    wrong[1, 2] = np.nan
    for name, matrix in (("right", np.eye(3)), ("wrong", wrong)):
        np.savez(tmp_path / f"{name}.npz", similarities=matrix, image_labels=np.arange(3), text_labels=np.arange(3))
    both = mean_similarities([read_similarities(tmp_path / f"{name}.npz") for name in ("right", "wrong")])
    with pytest.raises(UserError, match=r"wrong\.npz: similarities hold NaN in row 1, column 2; expected numbers"):
        PLAIN.evaluate(both)


def test_a_file_that_lacks_an_array_is_one_sentence(tmp_path):
    np.savez(tmp_path / "x.npz", similarities=np.eye(3), image_labels=np.arange(3))
    with pytest.raises(UserError, match=r"has no text_labels, it has similarities, image_labels; expected an \.npz"):
        read_similarities(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", similarities=np.eye(3), image_labels=np.arange(2), text_labels=np.arange(3))
    with pytest.raises(UserError, match=r"y\.npz: image_labels have shape"):
        read_similarities(tmp_path / "y.npz")
