"""What may be given to an evaluation, and one sentence for what may not."""

import numpy as np
import pytest
import torch

from crosspair import UserError, evaluate_retrieval
from crosspair.evaluation.csls import csls_vectors
from crosspair.evaluation.inputs import warn_once
from crosspair.evaluation.ranking import rank_positives

LABELS = np.arange(3)


def quantised():
    return torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)


def sparse_rows():
    return torch.eye(3).to_sparse_csr()


def nested():
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.eye(3).to_sparse(), r"are a sparse or nested tensor; expected a dense one, as \.to_dense\(\) gives"),
        (sparse_rows, "are a sparse or nested tensor"),
        (nested, "are a sparse or nested tensor"),
        (torch.empty(3, 3, device="meta"), "are on the meta device, where tensors have no numbers"),
        (quantised, r"are quantised; expected plain numbers, as \.dequantize\(\)"),
        (torch.eye(3).to(torch.float8_e4m3fn), r"are torch\.float8_e4m3fn; expected float16 or wider, as \.float\(\)"),
        (torch.eye(3).to(torch.float8_e5m2), r"are torch\.float8_e5m2"),
        (torch.eye(3, dtype=torch.complex64), "are complex64; expected floating point numbers"),
        (torch.eye(3, dtype=torch.bool), "are bool"),
        (np.eye(3).astype(complex), "are complex128"),
        (np.eye(3).astype(np.longdouble), f"are {np.dtype(np.longdouble)}"),
        (np.eye(3).astype(object), "hold Python objects; expected numbers"),
        (np.eye(3).astype("V4"), "hold raw bytes, as numpy stores bfloat16; expected numbers, convert them to float32"),
        (np.eye(3).astype(str), "are <U32; expected floating point"),
        ([[1.0, 0.0], [1.0]], "can't be made into an array .*; expected an array or a tensor, rows of one length"),
        ([torch.ones(2), torch.ones(3)], "can't be made into an array|hold Python objects"),
        (None, "hold Python objects"),
        (np.ma.masked_less(np.eye(3), 0.5), "are masked in places"),
        (np.eye(3).astype(np.int32), "are int32; expected floating point numbers, or codes of 8 or 16 bits"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_holds_no_embeddings_is_one_sentence(images, sentence):
    images = images() if callable(images) else images
    with pytest.raises(UserError, match=sentence) as error:
        evaluate_retrieval(images, np.eye(3), LABELS, LABELS)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("image_embeddings ")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (torch.arange(3).to_sparse(), "text_labels are a sparse or nested tensor"),
        (torch.empty(3, dtype=torch.int64, device="meta"), "text_labels are on the meta device"),
        (np.array([0, 1, None]), "text_labels hold Python objects"),
        ([[0], [1, 2]], "text_labels can't be made into an array"),
        ([0.0, 1.0, 2.0], "text_labels are float64; expected integers"),
    ],
)
def test_what_holds_no_labels_is_one_sentence(labels, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluate_retrieval(np.eye(3), np.eye(3), LABELS, labels)


@pytest.mark.parametrize("ks", [5, "5", None, (), (0,), (True,), (1.0,), [[1, 5]], np.array([]), np.array([0.5])])
def test_cut_offs_are_whole_numbers_from_1(ks):
    with pytest.raises(UserError, match=r"ks are .*; expected one or more whole numbers from 1, such as \(1, 5, 10\)"):
        evaluate_retrieval(np.eye(3), np.eye(3), LABELS, LABELS, ks)


def test_cut_offs_may_be_a_list_or_an_array():
    for ks in ([1, 2], np.array([1, 2]), range(1, 3)):
        assert "R@2" in evaluate_retrieval(np.eye(3), np.eye(3), LABELS, LABELS, ks).to_dict()["image_to_text"]


def test_further_metrics_are_a_tuple_of_names():
    for extra in ("mINP", 5, None):
        with pytest.raises(UserError, match=r"extra is .*; expected a tuple of names, such as \('mINP', 'nDCG@10'\)"):
            evaluate_retrieval(np.eye(3), np.eye(3), LABELS, LABELS, extra=extra)
    with pytest.raises(UserError, match="there is no metric 5"):
        evaluate_retrieval(np.eye(3), np.eye(3), LABELS, LABELS, extra=(5,))


def random_rows(seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    images = random.normal(size=(40, 12)).astype(dtype)
    texts = (images.repeat(2, 0) + random.normal(size=(80, 12))).astype(dtype)
    return images, texts, np.arange(40), np.arange(40).repeat(2)


def same(one, other):
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours.ranks, theirs.ranks)


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8", "<f4"])
@pytest.mark.parametrize("labels", [">i2", ">i4", ">i8", ">u4", np.uint8])
def test_any_byte_order_is_taken(kind, labels, tmp_path):
    images, texts, *numbers = random_rows(dtype=np.dtype(kind).newbyteorder("="))
    expected = rank_positives(images, texts, *numbers)
    given = [number.astype(labels) for number in numbers]
    same(rank_positives(images.astype(kind), texts.astype(kind), *given), expected)
    np.save(tmp_path / "images.npy", images.astype(kind))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    same(rank_positives(mapped, texts.astype(kind), *given), expected)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_integer_codes_rank_as_the_same_numbers_in_float32(kind, metric, as_tensor):
    images, texts, *labels = random_rows()
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    codes = [np.clip(np.round(rows * 30 + (60 if low == 0 else 0)), low, high).astype(kind) for rows in (images, texts)]
    given = [torch.from_numpy(rows) for rows in codes] if as_tensor else codes
    same(
        rank_positives(*given, *labels, metric),
        rank_positives(*(rows.astype(np.float32) for rows in codes), *labels, metric),
    )


def test_unsigned_codes_are_told_of_as_they_often_have_a_zero_point(caplog):
    """Codes of 1 and -1 with the zero point 128 lie in one quadrant, where all cosines are alike."""
    warn_once.cache_clear()
    rows = np.array([[129, 127], [127, 129]], dtype=np.uint8)
    evaluate_retrieval(rows, rows.astype(np.float32) - 128, [0, 1], [0, 1])
    evaluate_retrieval(rows.astype(np.int16) - 128, rows.astype(np.float32) - 128, [0, 1], [0, 1])
    assert caplog.messages == [
        "image_embeddings are uint8 codes, which rank as the numbers they are; take off their zero point if they have "
        "one, and unpack them if they are bits"
    ]


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        (np.float32, 1e-38),
        (np.float32, 1e-40),
        (np.float32, 1e-43),
        (np.float32, 5e36),
        (np.float64, 1e-310),
        (np.float64, 1e-320),
        (np.float64, 1e306),
        (np.float16, 1e-6),
    ],
)
def test_the_cosine_of_tiny_and_huge_rows_is_that_of_their_direction(kind, scale):
    """The rows are whole numbers times a power of two, so that scaling them loses nothing."""
    random = np.random.default_rng(0)
    step = 2.0 ** np.round(np.log2(scale))
    images, texts = random.integers(-9, 10, (30, 8)).astype(kind), random.integers(-9, 10, (60, 8)).astype(kind)
    small = (images.astype(np.float64) * step).astype(kind), (texts.astype(np.float64) * step).astype(kind)
    np.testing.assert_array_equal(small[0].astype(np.float64) / step, images)
    assert np.isfinite(small[0]).all()
    labels = np.arange(30), np.arange(30).repeat(2)
    same(rank_positives(*small, *labels), rank_positives(images, texts, *labels))
    same(rank_positives(small[0], texts, *labels), rank_positives(images, texts, *labels))
    for ours, theirs in zip(csls_vectors(*small), csls_vectors(images, texts), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_smallest_and_the_largest_float32_have_a_direction():
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    for number in (tiny, huge):
        rows = np.array([[number, 0], [0, number]], dtype=np.float32)
        assert evaluate_retrieval(rows, np.eye(2, dtype=np.float32), [0, 1], [0, 1]).rsum == 600
