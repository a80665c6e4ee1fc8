"""The losses that CMPM and CMPC are compared with: their definitions one number at a time, and what they share."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crosspair.losses import (
    InfoNCELoss,
    LearnedScale,
    SDMLoss,
    SigLIPLoss,
    TripletLoss,
    cmpm_terms,
    infonce_terms,
    sdm_terms,
    siglip_terms,
    triplet_terms,
)

Terms = Callable[..., tuple[Tensor, Tensor]]
TERMS: dict[str, Terms] = {
    "infonce": infonce_terms,
    "sdm": sdm_terms,
    "triplet": triplet_terms,
    "siglip": siglip_terms,
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "infonce": InfoNCELoss,
    "sdm": SDMLoss,
    "triplet": TripletLoss,
    "siglip": SigLIPLoss,
}
each_loss = pytest.mark.parametrize("name", TERMS)


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


def cosine(x: list[float], z: list[float]) -> float:
    return sum(a * b for a, b in zip(x, z, strict=True)) / math.hypot(*x) / math.hypot(*z)


def cosines(rows: Tensor, columns: Tensor) -> list[list[float]]:
    return [[cosine(x, z) for z in columns.tolist()] for x in rows.tolist()]


def softmax(scores: list[float]) -> list[float]:
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def naive_infonce(rows: Tensor, columns: Tensor, labels: list[int], others: list[int], scale: float) -> float:
    total = 0.0
    for label, scores in zip(labels, cosines(rows, columns), strict=True):
        p = softmax([scale * score for score in scores])
        found = [-math.log(p[j]) for j, other in enumerate(others) if other == label]
        total += sum(found) / len(found)
    return total / len(labels)


def naive_sdm(rows: Tensor, columns: Tensor, labels: list[int], others: list[int], temperature: float) -> float:
    total = 0.0
    for label, scores in zip(labels, cosines(rows, columns), strict=True):
        p = softmax([score / temperature for score in scores])
        for j, other in enumerate(others):
            q = 1 / others.count(label) if other == label else 0.0
            total += p[j] * math.log(p[j] / (q + 1e-8)) if p[j] > 0 else 0.0
    return total / len(labels)


def naive_triplet(rows: Tensor, columns: Tensor, labels: list[int], others: list[int], margin: float) -> float:
    hinges = []
    for label, scores in zip(labels, cosines(rows, columns), strict=True):
        negatives = [score for score, other in zip(scores, others, strict=True) if other != label]
        for score, other in zip(scores, others, strict=True):
            if other == label:
                hinges.append(max(0.0, margin - score + max(negatives)) if negatives else 0.0)
    return sum(hinges) / len(hinges)


def naive_siglip(images: Tensor, texts: Tensor, labels: list[int], others: list[int], scale: float, bias: float):
    sums = {True: 0.0, False: 0.0}
    for label, scores in zip(labels, cosines(images, texts), strict=True):
        for score, other in zip(scores, others, strict=True):
            sign = 1 if other == label else -1
            sums[other == label] += math.log1p(math.exp(-sign * (scale * score + bias)))
    return sums[True] / len(labels), sums[False] / len(labels)


@pytest.mark.parametrize(
    ("terms", "naive", "setting"),
    [
        (infonce_terms, naive_infonce, 1 / 0.07),
        (infonce_terms, naive_infonce, 100.0),
        (sdm_terms, naive_sdm, 0.02),
        (sdm_terms, naive_sdm, 0.5),
        (triplet_terms, naive_triplet, 0.2),
        (triplet_terms, naive_triplet, 1.5),
    ],
)
@given(batch=batches)
@settings(max_examples=20, deadline=None)
def test_both_directions_are_the_definition(
    terms: Terms, naive: Callable[..., float], setting: float, batch: tuple[Tensor, ...]
) -> None:
    images, texts, image_labels, text_labels = batch
    there = naive(images, texts, image_labels.tolist(), text_labels.tolist(), setting)
    back = naive(texts, images, text_labels.tolist(), image_labels.tolist(), setting)
    found = terms(*batch, setting)
    assert [value.item() for value in found] == pytest.approx([there, back], rel=1e-9, abs=1e-10)


@given(batches, st.sampled_from([(10.0, -10.0), (3.0, 0.5)]))
@settings(max_examples=20, deadline=None)
def test_siglip_is_the_definition(batch: tuple[Tensor, ...], setting: tuple[float, float]) -> None:
    images, texts, image_labels, text_labels = batch
    expected = naive_siglip(images, texts, image_labels.tolist(), text_labels.tolist(), *setting)
    found = siglip_terms(*batch, *setting)
    assert [value.item() for value in found] == pytest.approx(expected, rel=1e-9, abs=1e-10)


def test_infonce_with_one_match_each_is_clips_loss_doubled() -> None:
    images, texts = torch.randn(2, 8, 5, dtype=torch.float64)
    logits = F.normalize(images) @ F.normalize(texts).T / 0.07
    clip = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
    terms = infonce_terms(images, texts, torch.arange(100, 108))
    assert sum(terms).item() == pytest.approx(2 * clip.item())


@given(batches)
@settings(max_examples=10, deadline=None)
def test_sdm_is_cmpm_of_embeddings_of_one_length(batch: tuple[Tensor, ...]) -> None:
    images, texts, *labels = batch
    expected = cmpm_terms(F.normalize(images) * 50, F.normalize(texts) * 50, *labels)
    torch.testing.assert_close(tuple(sdm_terms(*batch)), tuple(expected))


def test_the_hardest_negative_of_equal_label_is_none() -> None:
    images = torch.eye(3)
    texts = torch.stack([images[0], images[0] + 0.1 * images[1], images[2]])  # the second is as close as a match
    assert sum(triplet_terms(images[[0, 0, 2]], texts, torch.tensor([4, 4, 5]))) == 0
    assert sum(triplet_terms(images[[0, 0, 2]], texts, torch.tensor([4, 6, 5]))).item() == pytest.approx(2 * 0.4 / 3)


@each_loss
@given(batch=batches, random=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_images_and_of_texts_does_not_matter(name: str, batch: tuple[Tensor, ...], random: Any) -> None:
    images, texts, image_labels, text_labels = batch
    image_order, text_order = list(range(len(images))), list(range(len(texts)))
    random.shuffle(image_order)
    random.shuffle(text_order)
    shuffled = (images[image_order], texts[text_order], image_labels[image_order], text_labels[text_order])
    torch.testing.assert_close(tuple(TERMS[name](*shuffled)), tuple(TERMS[name](*batch)), rtol=1e-9, atol=1e-10)


@each_loss
@given(batch=batches, scale=st.floats(1e-2, 1e3))
@settings(max_examples=10, deadline=None)
def test_the_length_of_embeddings_does_not_matter(name: str, batch: tuple[Tensor, ...], scale: float) -> None:
    images, texts, *labels = batch
    found = TERMS[name](images * scale, texts / scale, *labels)
    torch.testing.assert_close(tuple(found), tuple(TERMS[name](*batch)), rtol=1e-9, atol=1e-10)


@each_loss
def test_gradients_are_the_numerical_ones(name: str) -> None:
    images, texts, *labels = random_batch(3, 4, 5, 3)
    module = MODULES[name]().double()
    learned = tuple(module.parameters())

    def loss(x: Tensor, z: Tensor, *_: Tensor) -> Tensor:
        return module(x, z, *labels)

    assert torch.autograd.gradcheck(loss, (images.requires_grad_(), texts.requires_grad_(), *learned))


@each_loss
def test_the_module_is_the_sum_of_the_terms_at_the_papers_settings(name: str) -> None:
    batch = random_batch(4, 5, 7, 4)
    assert MODULES[name]().double()(*batch).item() == pytest.approx(sum(TERMS[name](*batch)).item(), rel=1e-6)


@each_loss
@pytest.mark.parametrize("first", [2**24, 2**53, 2**62 - 8])
def test_labels_next_to_each_other_are_different_however_large(name: str, first: int) -> None:
    images, texts = torch.randn(2, 8, 16)
    assert TERMS[name](images, texts, torch.arange(8) + first) == TERMS[name](images, texts, torch.arange(8))


@each_loss
@pytest.mark.parametrize("labels", [[5], [5, 5, 5], [0, 1, 2]])
def test_zero_rows_one_pair_and_equal_labels_give_finite_losses_and_gradients(name: str, labels: list[int]) -> None:
    images, texts = torch.randn(2, len(labels), 6)
    images[0] = 0
    texts[-1] = 0
    images.requires_grad_()
    texts.requires_grad_()
    loss = sum(TERMS[name](images, texts, torch.tensor(labels)))
    loss.backward()
    assert all(value.isfinite().all() for value in (loss, images.grad, texts.grad))


@pytest.mark.parametrize("name", ["infonce", "sdm", "triplet"])
def test_one_pair_has_nothing_to_be_told_from(name: str) -> None:
    image, text = torch.randn(2, 1, 7)
    assert sum(TERMS[name](image, text, torch.tensor([5]))).item() == pytest.approx(0, abs=1e-6)


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32_inside_autocast_too(name: str, dtype: torch.dtype) -> None:
    images, texts = torch.randn(2, 16, 32).to(dtype)
    expected = TERMS[name](images.float(), texts.float(), torch.arange(16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TERMS[name](images, texts, torch.arange(16))
    assert found == expected
    assert all(value.dtype == torch.float32 for value in found)


@each_loss
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_no_number_reaches_the_loss(name: str, value: float, where: int) -> None:
    embeddings = torch.randn(2, 4, 6)
    embeddings[where, 1, 2] = value
    assert MODULES[name]()(*embeddings, torch.tensor([0, 1, 1, 2])).isnan()


@each_loss
def test_wrong_inputs_are_refused(name: str) -> None:
    images, texts = torch.randn(3, 6), torch.randn(4, 6)
    with pytest.raises(ValueError, match="expected integers"):
        TERMS[name](images, texts, torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"image row 1 \(label 7\) matches no text"):
        TERMS[name](images, texts, torch.tensor([4, 7, 4]), torch.tensor([4, 4, 4, 4]))
    with pytest.raises(ValueError, match=r"text row 3 \(label 9\) matches no image"):
        TERMS[name](images, texts, torch.tensor([4, 5, 4]), torch.tensor([4, 4, 5, 9]))
    with pytest.raises(ValueError, match="dimension 6 and text_embeddings 5"):
        TERMS[name](images, torch.randn(3, 5), torch.arange(3))


class TestALearnedScale:
    def test_starts_where_it_is_told_and_learns_its_logarithm(self) -> None:
        scale = LearnedScale(20.0).double()
        scale().backward()
        assert scale().item() == pytest.approx(20.0, rel=1e-6)
        assert scale.logarithm.grad is not None
        assert scale.logarithm.grad.item() == pytest.approx(20.0, rel=1e-6)  # d exp(t) / dt

    def test_stops_at_its_bound_and_comes_back(self) -> None:
        scale = LearnedScale(99.0, largest=100.0)
        descent = torch.optim.SGD(scale.parameters(), lr=0.01)
        for sign, expected in ((-1, 100.0), (-1, 100.0), (1, 36.8)):
            descent.zero_grad()
            (sign * scale()).backward()
            descent.step()
            assert scale().item() == pytest.approx(expected, rel=1e-3)

    def test_is_kept_where_it_is_not_learned(self) -> None:
        assert not any(value.requires_grad for value in InfoNCELoss(0.05, learned=False).parameters())

    @pytest.mark.parametrize("start", [0.0, -1.0, 101.0])
    def test_refuses_a_start_out_of_bounds(self, start: float) -> None:
        with pytest.raises(ValueError, match="a scale starts at"):
            LearnedScale(start, largest=100.0)
