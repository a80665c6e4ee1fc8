import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosspair.losses import CMPMLoss, cmpm, cmpm_terms, cmpm_tiled

CASES = [f"cmpm{number:02d}" for number in range(32)]
WRONG_IN_FLOAT32 = {"cmpm29", "cmpm31"}  # the original compares labels as float32 distances


@pytest.fixture(params=["plain", "tiled"], autouse=True, scope="module")
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs with the formula as written, and with tiles of about 5 x 5 whatever the size of the batch."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tiled":
            patch.setattr(cmpm, "tile_side", lambda device: 0)
            patch.setattr(cmpm_tiled, "_TILE_SIDE", {"cpu": 5})
        yield request.param


def tensors(case: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    image = torch.tensor(case["image"], dtype=dtype, requires_grad=True)
    text = torch.tensor(case["text"], dtype=dtype, requires_grad=True)
    return image, text, torch.tensor(case["labels"])


def assert_gradient(found: Tensor | None, expected: np.ndarray, tolerance: float) -> None:
    """Largest difference as a share of the largest entry. Large references hold every eighth row and column."""
    assert found is not None
    values = found.numpy() if found.shape == expected.shape else found.numpy()[::8, ::8]
    assert np.abs(values - expected).max() <= tolerance * np.abs(expected).max()


def reference(case: dict[str, Any], key: str) -> np.ndarray:
    return case[key] if key in case else case[f"{key}_every8"]


@pytest.mark.parametrize("name", CASES)
def test_float64_gives_the_reference_value_and_gradient(
    name: str, oracle_case: Callable[[str], dict[str, Any]]
) -> None:
    case = oracle_case(name)
    image, text, labels = tensors(case, torch.float64)
    terms = cmpm_terms(image, text, labels)
    assert terms.image_to_text.item() == pytest.approx(float(case["i2t_matching_loss_f64"]), abs=3e-8)
    assert terms.text_to_image.item() == pytest.approx(float(case["t2i_matching_loss_f64"]), abs=3e-8)
    if "grad_image_f64" in case:
        CMPMLoss()(image, text, labels).backward()
        # The second epsilon that is not kept moves the gradients by up to 1e-8, too.
        np.testing.assert_allclose(image.grad, case["grad_image_f64"], rtol=1e-7, atol=3e-8 / max_norm(text))
        np.testing.assert_allclose(text.grad, case["grad_text_f64"], rtol=1e-7, atol=3e-8 / max_norm(image))


def max_norm(rows: Tensor) -> float:
    return min(1.0, float(rows.detach().norm(dim=1).max()))


@pytest.mark.parametrize("name", [name for name in CASES if name not in WRONG_IN_FLOAT32])
def test_float32_gives_the_reference_value_and_gradient(
    name: str, form: str, oracle_case: Callable[[str], dict[str, Any]]
) -> None:
    case = oracle_case(name)
    image, text, labels = tensors(case, torch.float32)
    terms = cmpm_terms(image, text, labels)
    wider = 2 if form == "tiled" else 1  # the reference is off by up to 4e-6 itself, in the same way as the plain form
    assert terms.image_to_text.item() == pytest.approx(float(case["i2t_matching_loss"]), abs=wider * 3e-6)
    assert terms.text_to_image.item() == pytest.approx(float(case["t2i_matching_loss"]), abs=wider * 3e-6)
    if name == "cmpm18":  # one pair: p is 1 whatever the embeddings are, and so is q
        return
    (terms.image_to_text + terms.text_to_image).backward()
    near_zero = {"cmpm06", "cmpm15"}
    scale = float(case.get("scale", 1))
    tolerance = 2e-5 if name in near_zero else {30.0: 5e-5, 300.0: 3e-2}.get(scale, 1e-6)
    assert_gradient(image.grad, reference(case, "grad_image"), wider * tolerance)
    assert_gradient(text.grad, reference(case, "grad_text"), wider * tolerance)


def test_the_image_to_text_term_alone_has_the_reference_gradient(
    oracle_case: Callable[[str], dict[str, Any]],
) -> None:
    case = oracle_case("cmpm13")
    image, text, labels = tensors(case, torch.float32)
    cmpm_terms(image, text, labels).image_to_text.backward()
    assert_gradient(image.grad, case["grad_i2t_only_image"], 1e-6)
    assert_gradient(text.grad, case["grad_i2t_only_text"], 1e-6)


@pytest.mark.parametrize("name", sorted(WRONG_IN_FLOAT32))
def test_large_neighbouring_labels_stay_apart_in_float32(
    name: str, oracle_case: Callable[[str], dict[str, Any]]
) -> None:
    case = oracle_case(name)
    terms = cmpm_terms(*tensors(case, torch.float32))
    assert terms.image_to_text.item() == pytest.approx(float(case["i2t_matching_loss_f64"]), abs=3e-6)
    assert abs(terms.image_to_text.item() - float(case["i2t_matching_loss"])) > 1


def naive_image_to_text(
    images: Tensor, texts: Tensor, image_labels: list[int], text_labels: list[int], epsilon: float = 1e-8
) -> float:
    """The definition, one number at a time."""
    total = 0.0
    for i, x in enumerate(images.tolist()):
        scores = []
        for z in texts.tolist():
            norm = math.sqrt(sum(value * value for value in z))
            scores.append(sum(a * b for a, b in zip(x, z, strict=True)) / max(norm, 1e-6))
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        matches = sum(label == image_labels[i] for label in text_labels)
        for j, weight in enumerate(weights):
            p = weight / sum(weights)
            q = 1 / matches if text_labels[j] == image_labels[i] else 0.0
            if p > 0:
                total += p * math.log(p / (q + epsilon))
    return total / len(images)


def random_batch(seed: int, n: int, m: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings and labels in float64 where every row has a match."""
    generator = torch.Generator().manual_seed(seed)
    classes = min(classes, n, m)
    image_labels = torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,), generator=generator)])
    text_labels = torch.cat([torch.arange(classes), torch.randint(classes, (m - classes,), generator=generator)])
    images = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    texts = torch.randn(m, 5, dtype=torch.float64, generator=generator)
    return images, texts, image_labels, text_labels


batches = st.builds(
    random_batch,
    seed=st.integers(0, 2**32),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    classes=st.integers(1, 5),
)


@given(batches)
@settings(max_examples=40, deadline=None)
def test_both_terms_are_the_definition_for_any_number_of_images_and_texts(
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    images, texts, image_labels, text_labels = batch
    terms = cmpm_terms(*batch)
    there = naive_image_to_text(images, texts, image_labels.tolist(), text_labels.tolist())
    back = naive_image_to_text(texts, images, text_labels.tolist(), image_labels.tolist())
    assert terms.image_to_text.item() == pytest.approx(there, abs=1e-10)
    assert terms.text_to_image.item() == pytest.approx(back, abs=1e-10)
    assert CMPMLoss()(*batch).item() == pytest.approx(there + back, abs=1e-10)


@given(batches, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_images_and_of_texts_does_not_matter(batch: tuple[Tensor, ...], random: Any) -> None:
    images, texts, image_labels, text_labels = batch
    image_order, text_order = list(range(len(images))), list(range(len(texts)))
    random.shuffle(image_order)
    random.shuffle(text_order)
    shuffled = (images[image_order], texts[text_order], image_labels[image_order], text_labels[text_order])
    torch.testing.assert_close(cmpm_terms(*shuffled), cmpm_terms(*batch), rtol=0, atol=1e-10)


@given(batches)
@settings(max_examples=20, deadline=None)
def test_swapping_the_modalities_swaps_the_terms(batch: tuple[Tensor, ...]) -> None:
    images, texts, image_labels, text_labels = batch
    terms = cmpm_terms(images, texts, image_labels, text_labels)
    swapped = cmpm_terms(texts, images, text_labels, image_labels)
    torch.testing.assert_close(tuple(swapped), tuple(reversed(terms)), rtol=0, atol=1e-12)


@given(batches, st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_repeating_every_text_leaves_the_text_to_image_term(batch: tuple[Tensor, ...], times: int) -> None:
    images, texts, image_labels, text_labels = batch
    repeated = (images, texts.repeat_interleave(times, 0), image_labels, text_labels.repeat_interleave(times))
    torch.testing.assert_close(cmpm_terms(*repeated).text_to_image, cmpm_terms(*batch).text_to_image)


@given(batches, st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_repeating_every_text_leaves_both_terms_when_all_labels_are_equal(
    batch: tuple[Tensor, ...], times: int
) -> None:
    images, texts = batch[:2]
    labels = torch.zeros(len(images) + times * len(texts), dtype=torch.int64)
    once = cmpm_terms(images, texts, labels[: len(images)], labels[: len(texts)])
    repeated = cmpm_terms(images, texts.repeat(times, 1), labels[: len(images)], labels[: times * len(texts)])
    torch.testing.assert_close(repeated, once, rtol=0, atol=1e-6)  # epsilon weighs more against a smaller q


@given(batches, st.floats(1e-2, 1e3))
@settings(max_examples=20, deadline=None)
def test_the_length_of_what_is_projected_onto_does_not_matter(batch: tuple[Tensor, ...], scale: float) -> None:
    images, texts, image_labels, text_labels = batch
    scaled = cmpm_terms(images, texts * scale, image_labels, text_labels)
    torch.testing.assert_close(scaled.image_to_text, cmpm_terms(*batch).image_to_text)


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_images_with_their_captions_give_what_the_expanded_pairs_give(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    texts = torch.randn(12, 6, dtype=torch.float64, generator=generator)
    labels = torch.arange(4)
    compact = cmpm_terms(images, texts, labels, labels.repeat_interleave(3))
    pairs = cmpm_terms(images.repeat_interleave(3, 0), texts, labels.repeat_interleave(3))
    assert pairs.image_to_text.item() == pytest.approx(compact.image_to_text.item(), abs=1e-10)
    # From texts to images each q is a third in the pairs, so the share of p without a match meets epsilon differently.
    assert pairs.text_to_image.item() == pytest.approx(compact.text_to_image.item(), rel=0.1)


def test_gradients_are_the_numerical_ones(form: str) -> None:
    images, texts, image_labels, text_labels = random_batch(3, 7, 8, 4)
    images[2] *= 1e-7  # too short to be a direction
    images.requires_grad_()
    texts.requires_grad_()

    def weighted(x: Tensor, z: Tensor) -> Tensor:
        terms = cmpm_terms(x, z, image_labels, text_labels)
        return 1.3 * terms.image_to_text + 0.4 * terms.text_to_image

    assert torch.autograd.gradcheck(weighted, (images, texts), eps=1e-9, rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradcheck(lambda z: weighted(images.detach(), z), (texts,))


def test_second_derivatives_are_the_numerical_ones_or_refused(form: str) -> None:
    images, texts, image_labels, text_labels = random_batch(3, 4, 5, 3)
    images.requires_grad_()
    texts.requires_grad_()

    def loss(x: Tensor, z: Tensor) -> Tensor:
        return CMPMLoss()(x, z, image_labels, text_labels)

    if form == "plain":
        assert torch.autograd.gradgradcheck(loss, (images, texts))
        return
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(loss(images, texts), images, create_graph=True)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 300.0])
def test_one_pair_has_no_loss(scale: float) -> None:
    image, text = torch.randn(2, 1, 7) * scale
    assert CMPMLoss()(image, text, torch.tensor([5])).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("first", [2**24, 2**53, 2**62 - 8])
def test_labels_next_to_each_other_are_different_however_large(first: int) -> None:
    images, texts = torch.randn(2, 8, 16)
    expected = CMPMLoss()(images, texts, torch.arange(8))
    assert CMPMLoss()(images, texts, torch.arange(8) + first) == expected


def test_zero_rows_give_finite_gradients() -> None:
    images = torch.randn(4, 6)
    images[2] = 0
    texts = torch.zeros(4, 6)
    images.requires_grad_()
    texts.requires_grad_()
    loss = CMPMLoss()(images, texts, torch.arange(4))
    loss.backward()
    assert loss.isfinite()
    assert images.grad is not None
    assert texts.grad is not None
    assert images.grad.isfinite().all()
    assert texts.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    images, texts = torch.randn(2, 16, 32).to(dtype)
    labels = torch.arange(16)
    loss = CMPMLoss()(images, texts, labels)
    assert loss.dtype == torch.float32
    assert loss == CMPMLoss()(images.float(), texts.float(), labels)


def test_autocast_does_not_lower_the_precision() -> None:
    images, texts = torch.randn(2, 16, 32)
    expected = CMPMLoss()(images, texts, torch.arange(16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CMPMLoss()(images, texts, torch.arange(16)) == expected


def test_a_nan_in_an_embedding_reaches_the_loss() -> None:
    images, texts = torch.randn(2, 4, 6)
    images[1, 2] = torch.nan
    assert CMPMLoss()(images, texts, torch.arange(4)).isnan()


def test_any_integer_type_of_label_will_do() -> None:
    images, texts = torch.randn(2, 4, 6)
    labels = torch.tensor([0, 1, 1, 2])
    assert CMPMLoss()(images, texts, labels.int(), labels.to(torch.uint8)) == CMPMLoss()(images, texts, labels)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
def test_labels_that_do_not_compare_exactly_are_refused(dtype: torch.dtype) -> None:
    images, texts = torch.randn(2, 2, 6)
    with pytest.raises(ValueError, match="expected integers"):
        CMPMLoss()(images, texts, torch.tensor([0, 1]).to(dtype))


def test_a_row_without_a_match_is_named() -> None:
    images, texts = torch.randn(3, 6), torch.randn(4, 6)
    with pytest.raises(ValueError, match=r"image row 1 \(label 7\) matches no text"):
        CMPMLoss()(images, texts, torch.tensor([4, 7, 4]), torch.tensor([4, 4, 4, 4]))
    with pytest.raises(ValueError, match=r"text row 3 \(label 9\) matches no image"):
        CMPMLoss()(images, texts, torch.tensor([4, 5, 4]), torch.tensor([4, 4, 5, 9]))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension 6 and text_embeddings 5"):
        CMPMLoss()(torch.randn(2, 6), torch.randn(2, 5), torch.arange(2))
    with pytest.raises(ValueError, match=r"text_labels .* each of the 3 rows"):
        CMPMLoss()(torch.randn(2, 6), torch.randn(3, 6), torch.arange(2))
    with pytest.raises(ValueError, match="image_labels have shape"):
        CMPMLoss()(torch.randn(2, 6), torch.randn(2, 6), torch.arange(4).view(2, 2))
    with pytest.raises(ValueError, match="at least one row"):
        CMPMLoss()(torch.empty(0, 6), torch.empty(0, 6), torch.arange(0))
