import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosspair.losses import CMPCLoss, cmpc_precisions, cmpc_terms

CASES = [f"cmpc{number:02d}" for number in range(40)]


def tensors(case: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image, text, weight = (torch.tensor(case[key], dtype=dtype, requires_grad=True) for key in ("image", "text", "W"))
    return image, text, torch.tensor(case["labels"]), weight


def largest_share(found: Tensor | None, case: dict[str, Any], key: str) -> float:
    """Largest difference over the largest expected entry. Large references hold every eighth row and column."""
    assert found is not None
    expected = case[key] if key in case else case[f"{key}_every8"]
    values = found.numpy() if found.shape == expected.shape else found.numpy()[::8, ::8]
    return float(np.abs(values - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_float32_gives_the_reference_value_and_gradient(
    name: str, oracle_case: Callable[[str], dict[str, Any]]
) -> None:
    case = oracle_case(name)
    image, text, labels, weight = tensors(case, torch.float32)
    terms = cmpc_terms(image, text, labels, weight, float(case["label_smoothing"]))
    assert terms.image_to_text.item() == pytest.approx(float(case["ipt_loss"]), abs=3e-6)
    assert terms.text_to_image.item() == pytest.approx(float(case["tpi_loss"]), abs=3e-6)
    (terms.image_to_text + terms.text_to_image).backward()
    tolerance = 5e-5 if case.get("scale", 1) == 30 else 1e-6
    assert largest_share(image.grad, case, "grad_image") <= tolerance
    assert largest_share(text.grad, case, "grad_text") <= tolerance
    assert largest_share(weight.grad, case, "grad_W") <= tolerance


@pytest.mark.parametrize("name", CASES[:-1])  # the last one has no float64 reference
def test_float64_gives_the_reference_value_and_gradient(
    name: str, oracle_case: Callable[[str], dict[str, Any]]
) -> None:
    case = oracle_case(name)
    image, text, labels, weight = tensors(case, torch.float64)
    terms = cmpc_terms(image, text, labels, weight, float(case["label_smoothing"]))
    assert terms.image_to_text.item() == pytest.approx(float(case["ipt_loss_f64"]), rel=2e-7)
    assert terms.text_to_image.item() == pytest.approx(float(case["tpi_loss_f64"]), rel=2e-7)
    if "grad_image_f64" in case:
        (terms.image_to_text + terms.text_to_image).backward()
        assert largest_share(image.grad, case, "grad_image_f64") <= 1e-7
        assert largest_share(text.grad, case, "grad_text_f64") <= 1e-7
        assert largest_share(weight.grad, case, "grad_W_f64") <= 1e-7


@pytest.mark.parametrize("name", CASES)
def test_precisions_are_the_references(name: str, oracle_case: Callable[[str], dict[str, Any]]) -> None:
    case = oracle_case(name)
    image, text, labels, weight = tensors(case, torch.float32)
    found = cmpc_precisions(image, text, labels, weight)
    assert not found.image.requires_grad
    assert found.image.item() == pytest.approx(100 * float(case["image_precision"]), abs=1e-4)
    assert found.text.item() == pytest.approx(100 * float(case["text_precision"]), abs=1e-4)


def naive_image_to_text(images: Tensor, texts: Tensor, labels: list[int], weight: Tensor, smoothing: float) -> float:
    """The definition, one number at a time."""
    columns = weight.T.tolist()
    total = 0.0
    for x, z, label in zip(images.tolist(), texts.tolist(), labels, strict=True):
        length = max(math.hypot(*z), 1e-6)
        along = sum(a * b for a, b in zip(x, z, strict=True)) / length
        projected = [along * value / length for value in z]
        logits = []
        for column in columns:
            norm = max(math.hypot(*column), 1e-6)
            logits.append(sum(a * b for a, b in zip(projected, column, strict=True)) / norm)
        top = max(logits)
        log_sum = top + math.log(sum(math.exp(logit - top) for logit in logits))
        for k, logit in enumerate(logits):
            target = smoothing / len(logits) + (1 - smoothing if k == label else 0)
            total += target * (log_sum - logit)
    return total / len(images)


def random_pairs(seed: int, pairs: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, pairs, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, classes, dtype=torch.float64, generator=generator)
    return images, texts, torch.randint(classes, (pairs,), generator=generator), weight


batches = st.builds(random_pairs, seed=st.integers(0, 2**32), pairs=st.integers(1, 9), classes=st.integers(1, 6))


@given(batches, st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=40, deadline=None)
def test_both_terms_are_the_definition(batch: tuple[Tensor, Tensor, Tensor, Tensor], smoothing: float) -> None:
    images, texts, labels, weight = batch
    terms = cmpc_terms(*batch, smoothing)
    there = naive_image_to_text(images, texts, labels.tolist(), weight, smoothing)
    back = naive_image_to_text(texts, images, labels.tolist(), weight, smoothing)
    assert terms.image_to_text.item() == pytest.approx(there, abs=1e-10)
    assert terms.text_to_image.item() == pytest.approx(back, abs=1e-10)


@given(batches, st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_pairs_does_not_matter(batch: tuple[Tensor, ...], random: Any) -> None:
    images, texts, labels, weight = batch
    order = list(range(len(images)))
    random.shuffle(order)
    found = cmpc_terms(images[order], texts[order], labels[order], weight)
    torch.testing.assert_close(found, cmpc_terms(images, texts, labels, weight), rtol=0, atol=1e-10)


@given(batches, st.floats(1e-2, 1e3))
@settings(max_examples=20, deadline=None)
def test_the_lengths_of_the_projected_onto_and_of_class_weights_do_not_matter(
    batch: tuple[Tensor, ...], scale: float
) -> None:
    images, texts, labels, weight = batch
    found = cmpc_terms(images, texts * scale, labels, weight / scale).image_to_text
    torch.testing.assert_close(found, cmpc_terms(images, texts, labels, weight).image_to_text)


@given(batches)
@settings(max_examples=20, deadline=None)
def test_swapping_the_modalities_swaps_the_terms(batch: tuple[Tensor, ...]) -> None:
    images, texts, labels, weight = batch
    terms, swapped = cmpc_terms(images, texts, labels, weight), cmpc_terms(texts, images, labels, weight)
    assert (swapped.image_to_text, swapped.text_to_image) == (terms.text_to_image, terms.image_to_text)


def test_gradients_are_the_numerical_ones_to_second_order() -> None:
    images, texts, labels, weight = random_pairs(5, 4, 3)
    inputs = tuple(tensor.requires_grad_() for tensor in (images, texts, weight))

    def loss(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
        return sum(cmpc_terms(x, z, labels, w, 0.1), torch.zeros(()))

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_the_module_is_the_sum_of_the_terms_and_trains_its_weight() -> None:
    loss = CMPCLoss(num_classes=7, embedding_dim=6, label_smoothing=0.1)
    assert loss.weight.shape == (6, 7)
    images, texts = torch.randn(2, 4, 6)
    labels = torch.tensor([0, 6, 3, 3])
    value = loss(images, texts, labels)
    assert value == sum(cmpc_terms(images, texts, labels, loss.weight, 0.1))
    value.backward()
    assert loss.weight.grad is not None
    assert loss.weight.grad.abs().sum() > 0


def test_the_initial_weight_lies_within_xavier_bounds() -> None:
    bound = math.sqrt(6 / (64 + 100))
    largest = CMPCLoss(num_classes=100, embedding_dim=64).weight.abs().max().item()
    assert 0.95 * bound < largest <= bound


def test_spare_classes_are_classes_that_no_label_has() -> None:
    images, texts = torch.randn(2, 8, 16)
    labels = torch.arange(8) % 5
    spare = CMPCLoss(num_classes=5, embedding_dim=16, spare_classes=3)
    assert spare.weight.shape == (16, 8)
    whole = CMPCLoss(num_classes=8, embedding_dim=16)
    whole.load_state_dict(spare.state_dict())
    assert torch.equal(spare(images, texts, labels), whole(images, texts, labels))
    without = sum(cmpc_terms(images, texts, labels, spare.weight[:, :5]))
    assert spare(images, texts, labels) > without


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    images, texts = torch.randn(2, 8, 16).to(dtype)
    loss = CMPCLoss(num_classes=8, embedding_dim=16)
    value = loss(images, texts, torch.arange(8))
    assert value.dtype == torch.float32
    assert value == loss(images.float(), texts.float(), torch.arange(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(images, texts, torch.arange(8)) == value


def test_a_nan_in_an_embedding_reaches_the_loss() -> None:
    images, texts = torch.randn(2, 4, 6)
    texts[3, 0] = torch.nan
    assert CMPCLoss(4, 6)(images, texts, torch.arange(4)).isnan()


@pytest.mark.parametrize("label", [-100, -1, 4, 2**62])
def test_a_label_out_of_range_is_named(label: int) -> None:
    images, texts = torch.randn(2, 3, 6)
    with pytest.raises(ValueError, match=rf"label {label} in row 2 is out of range; expected 0 \.\. 3"):
        CMPCLoss(4, 6)(images, texts, torch.tensor([0, 3, label]))


def test_wrong_shapes_and_types_are_refused() -> None:
    loss = CMPCLoss(4, 6)
    with pytest.raises(ValueError, match="expected pairs"):
        loss(torch.randn(2, 6), torch.randn(3, 6), torch.arange(2))
    with pytest.raises(ValueError, match="embeddings have dimension 5"):
        loss(torch.randn(2, 5), torch.randn(2, 5), torch.arange(2))
    with pytest.raises(ValueError, match="expected integers"):
        loss(torch.randn(2, 6), torch.randn(2, 6), torch.ones(2))
    with pytest.raises(ValueError, match="each of the 2 rows"):
        loss(torch.randn(2, 6), torch.randn(2, 6), torch.arange(3))


def test_a_column_that_is_too_short_for_a_direction_has_the_numerical_gradient() -> None:
    images, texts, labels, weight = random_pairs(6, 4, 3)
    weight[:, 1] *= 1e-8
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: cmpc_terms(images, texts, labels, w, 0.1), (weight,), eps=1e-9, rtol=1e-4)


def test_sampling_every_class_changes_nothing() -> None:
    images, texts, labels, weight = random_pairs(7, 4, 50)
    expected = cmpc_terms(images, texts, labels, weight, 0.1)
    found = cmpc_terms(images, texts, labels, weight, 0.1, sampled_classes=49)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_more_classes_are_sampled_the_smaller_the_bias_and_it_is_downwards(smoothing: float) -> None:
    images, texts, labels, weight = random_pairs(8, 4, 400)
    exact = sum(cmpc_terms(images, texts, labels, weight, smoothing), torch.zeros(()))
    torch.manual_seed(0)
    bias = []
    for drawn in (4, 64):
        samples = [cmpc_terms(images, texts, labels, weight, smoothing, sampled_classes=drawn) for _ in range(400)]
        bias.append(float(torch.stack([sum(terms, torch.zeros(())) for terms in samples]).mean() - exact))
    assert bias[0] < -0.02
    assert abs(bias[1]) < abs(bias[0]) / 5


def test_sampling_draws_from_torchs_generator_and_only_in_training() -> None:
    loss = CMPCLoss(50, 5, sampled_classes=10)
    images, texts, labels, _ = random_pairs(9, 4, 50)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(loss(images, texts, labels))
    assert values[0] == values[1] != values[2]
    assert loss.eval()(images, texts, labels) == sum(cmpc_terms(images, texts, labels, loss.weight))
    values[2].backward()
    assert loss.weight.grad is not None
    assert 10 <= loss.weight.grad.any(dim=0).sum() <= 14


def test_classification_compiles_into_one_graph() -> None:
    images, texts, labels, weight = random_pairs(10, 4, 5)
    weight.requires_grad_()
    compiled = torch.compile(cmpc_terms, fullgraph=True, backend="eager")
    found, expected = compiled(images, texts, labels, weight), cmpc_terms(images, texts, labels, weight)
    torch.testing.assert_close(found.image_to_text, expected.image_to_text)
    gradients = [torch.autograd.grad(sum(terms, torch.zeros(())), weight)[0] for terms in (found, expected)]
    torch.testing.assert_close(*gradients)
