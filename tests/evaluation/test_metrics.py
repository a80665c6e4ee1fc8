"""Metrics against the published code's numbers, scikit-learn's, and the contract."""

import json
import math

import numpy as np
import pytest
import torch

import crosspair
from crosspair import UserError, evaluate_retrieval

CASES = ["flickr50x5_random", "flickr50x5_correlated", "pedes200x2_correlated", "perfect_40x5"]
TIES = ["ties_sign_features_12x5_d4", "ties_all_equal_12x5_d4"]
DIRECTIONS = {"i2t": "image_to_text", "t2i": "text_to_image"}


def inputs(oracle, case, dtype=np.float32):
    names = ("image_features", "text_features", "image_labels", "text_labels")
    images, texts, *labels = (oracle[f"{case}__{name}"] for name in names)
    return images.astype(dtype), texts.astype(dtype), *labels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", CASES)
def test_recall_and_both_average_precisions_are_the_references(oracle, case, metric, dtype):
    result = evaluate_retrieval(*inputs(oracle, case, dtype), metric=metric, metric_definition="original").to_dict()
    for short, direction in DIRECTIONS.items():
        values = result[direction]
        *recalls, original = oracle[f"{case}__{metric}_{short}_R1_R5_R10_MAP"] * 100
        assert [values["R@1"], values["R@5"], values["R@10"]] == recalls
        assert values["mAP_original"] == pytest.approx(original, abs=1e-9)
        for reference in ("same_ranking", "sklearn"):
            expected = oracle[f"{case}__{metric}_{short}_true_MAP_{reference}"] * 100
            assert values["mAP"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", TIES)
def test_average_precision_of_ties_is_that_of_scikit_learn(oracle, case, metric, dtype):
    result = evaluate_retrieval(*inputs(oracle, case, dtype), metric=metric).to_dict()
    for short, direction in DIRECTIONS.items():
        expected = oracle[f"{case}__{metric}_{short}_true_MAP_sklearn"] * 100
        assert result[direction]["mAP"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("case", TIES)
def test_recall_of_ties_is_never_above_that_of_an_arbitrary_order(oracle, case):
    result = evaluate_retrieval(*inputs(oracle, case)).to_dict()
    for short, direction in DIRECTIONS.items():
        lucky = oracle[f"{case}__cosine_{short}_R1_R5_R10_MAP"] * 100
        assert all(result[direction][f"R@{k}"] <= value for k, value in zip((1, 5, 10), lucky, strict=False))


def test_the_original_precision_of_a_lone_positive_counts_at_rank_one_alone(oracle):
    """All queries lie below the gallery, which ascends: query i meets its one positive at rank i + 1."""
    gallery = np.arange(1.0, 11.0)[:, None]
    result = evaluate_retrieval(np.zeros((10, 1)), gallery, np.arange(10), np.arange(10), metric="euclidean")
    np.testing.assert_array_equal(
        result.image_to_text.values("mAP_original"), oracle["direct_single_relevant__orig_AP_per_query"]
    )


def test_average_precision_of_several_positives(oracle):
    relevant = oracle["direct_multi__gallery_labels"]
    result = evaluate_retrieval(
        np.array([[0.0], [100.0]]), np.arange(10.0)[:, None], np.array([1, 0]), relevant, metric="euclidean"
    ).image_to_text
    assert result.values("mAP")[0] == pytest.approx(float(oracle["direct_multi__true_AP"]), abs=1e-12)
    assert result.values("mAP_original")[0] == pytest.approx(float(oracle["direct_multi__orig_AP"]), abs=1e-12)


def test_the_dictionary_is_that_of_the_contract():
    result = evaluate_retrieval(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3))
    assert isinstance(result, crosspair.RetrievalResult)
    perfect = {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0, "mAP": 100.0, "median_rank": 1.0, "mean_rank": 1.0}
    assert result.to_dict() == {"image_to_text": perfect, "text_to_image": perfect, "rsum": 600.0}
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_a_tie_counts_against_the_model():
    result = evaluate_retrieval(np.ones((10, 4)), np.ones((10, 4)), np.arange(10), np.arange(10), ks=(1, 9, 10))
    for values in (result.to_dict()["image_to_text"], result.to_dict()["text_to_image"]):
        assert values == {"R@1": 0, "R@9": 0, "R@10": 100, "mAP": pytest.approx(10), "median_rank": 10, "mean_rank": 10}


def test_directions_differ_and_a_picture_counts_once_however_many_captions_it_has():
    images = np.eye(3)
    texts = np.eye(3)[[0, 0, 0, 0, 2, 1]] + [0.1, 0, 0]
    result = evaluate_retrieval(images, texts, np.arange(3), np.array([0, 0, 0, 0, 1, 2])).to_dict()
    assert result["image_to_text"]["R@1"] == pytest.approx(100 / 3)
    assert result["text_to_image"]["R@1"] == pytest.approx(100 * 4 / 6)


def test_ranks_are_those_of_the_first_positive_and_an_even_median_is_a_mean():
    texts = np.arange(6.0)[:, None]
    result = evaluate_retrieval(
        np.zeros((2, 1)), texts, np.array([7, 8]), np.array([7, 8, 8, 8, 8, 7]), metric="euclidean"
    ).to_dict()
    assert result["image_to_text"]["median_rank"] == result["image_to_text"]["mean_rank"] == 1.5


def test_a_k_beyond_the_gallery_gives_100_per_cent():
    result = evaluate_retrieval(-np.eye(3), np.eye(3), np.arange(3), np.arange(3), ks=(1, 1000)).to_dict()
    assert result["image_to_text"]["R@1"] == 0
    assert result["image_to_text"]["R@1000"] == 100


def test_one_picture_and_one_text_is_a_perfect_match():
    result = evaluate_retrieval(np.ones((1, 1)), -np.ones((1, 1)), np.array([2**62]), np.array([2**62]))
    assert result.rsum == 600


def test_neighbouring_labels_up_to_the_largest_differ():
    labels = np.array([2**62 - 1, 2**62, 2**63 - 1])
    assert evaluate_retrieval(np.eye(3), np.eye(3), labels, labels).image_to_text.ranks.positives.tolist() == [1, 1, 1]
    unsigned = evaluate_retrieval(np.eye(3), np.eye(3), labels.astype(np.uint64), labels)
    assert unsigned.rsum == 600


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_tensors_of_any_float_type_with_gradient_are_accepted(dtype):
    images = torch.eye(4, dtype=dtype, requires_grad=True)
    assert evaluate_retrieval(images, torch.eye(4, dtype=dtype), torch.arange(4), torch.arange(4).int()).rsum == 600


def test_the_embeddings_are_left_as_they_were_and_may_be_read_only():
    images = np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
    images.setflags(write=False)
    texts = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert evaluate_retrieval(images, texts, np.arange(2), np.arange(2)).rsum == 600
    assert texts.tolist() == [[3.0, 4.0], [0.0, 2.0]]


def test_the_table_shows_both_directions_and_what_was_ranked():
    table = evaluate_retrieval(np.eye(3), np.eye(3), np.arange(3), np.arange(3)).to_table()
    header, image_to_text, text_to_image, note = table.splitlines()
    assert header.split() == ["R@1", "R@5", "R@10", "mAP", "median_rank", "mean_rank"]
    assert image_to_text.split() == ["image", "to", "text", "100.0", "100.0", "100.0", "100.0", "1", "1.0"]
    assert len(header) == len(image_to_text) == len(text_to_image)
    assert "rsum 600.0" in note


def bad(**changes):
    given = {
        "image_embeddings": np.eye(3),
        "text_embeddings": np.eye(3),
        "image_labels": np.arange(3),
        "text_labels": np.arange(3),
    }
    return given | changes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_embeddings": np.eye(3) * [[1], [math.nan], [1]]}, "row 1 of image_embeddings holds NaN"),
        ({"text_embeddings": torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, math.inf]])}, "row 2 of text_embeddings"),
        ({"image_embeddings": np.eye(3)[:, :2]}, "dimension 2 and text_embeddings 3"),
        ({"image_embeddings": np.ones(3)}, r"image_embeddings have shape \(3,\)"),
        ({"image_embeddings": np.ones((0, 3)), "image_labels": np.arange(0)}, r"shape \(0, 3\)"),
        ({"image_embeddings": np.eye(3, dtype=int)}, "int64; expected floating point"),
        ({"image_labels": np.arange(4)}, r"image_labels have shape \(4,\)"),
        ({"text_labels": torch.arange(3)[:, None]}, r"text_labels have shape \(3, 1\)"),
        ({"text_labels": np.arange(3.0)}, "text_labels are float64; expected integers"),
        ({"text_labels": np.array(["a", "b", "c"])}, "expected integers"),
        ({"text_labels": np.array([True, True, False])}, "text_labels are bool"),
        ({"text_labels": np.array([0, 1, 2**64 - 1], dtype=np.uint64)}, r"2\*\*63 - 1"),
        ({"text_labels": np.array([0, 0, 1])}, "row 2 of image_embeddings with label 2 matches no row"),
        ({"image_labels": np.array([0, 0, 0])}, r"row 1 of text_embeddings with label 1 \(and 1 more\) matches no row"),
        ({"ks": ()}, "ks are"),
        ({"ks": (0, 5)}, "ks are"),
        ({"ks": (1.5,)}, "ks are"),
        ({"metric": "dot"}, "metric is 'dot'"),
        ({"metric_definition": "paper"}, "metric_definition is 'paper'"),
        ({"image_embeddings": np.eye(3, dtype=np.float32) * 1e30, "metric": "euclidean"}, "scale them"),
    ],
)
def test_what_can_not_be_evaluated_is_one_sentence(changes, sentence):
    if "image_embeddings" in changes and changes.get("metric") == "euclidean":
        changes = changes | {"text_embeddings": np.eye(3, dtype=np.float32)}
    with pytest.raises(UserError, match=sentence) as error:
        evaluate_retrieval(**bad(**changes))
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)
