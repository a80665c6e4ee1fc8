"""The identity loss: its definition one number at a time, as IRRA computes it."""

import math

import pytest
import torch

from crosspair.losses import IdentityLoss


def cross_entropy(rows, labels, weight, bias) -> float:
    total = 0.0
    for row, label in zip(rows.tolist(), labels, strict=True):
        logits = [
            sum(x * w for x, w in zip(row, column, strict=True)) + b
            for column, b in zip(weight.T.tolist(), bias.tolist(), strict=True)
        ]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
    return total / len(labels)


@pytest.fixture
def case():
    torch.manual_seed(0)
    loss = IdentityLoss(num_classes=4, embedding_dim=3).double()
    with torch.no_grad():
        loss.weight.normal_()
        loss.bias.normal_()
    return loss, torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64), [0, 3, 1, 1, 2]


def test_it_is_half_the_cross_entropy_of_images_and_half_that_of_texts(case):
    loss, images, texts, labels = case
    terms = loss.terms(images, texts, torch.tensor(labels))
    assert terms.image.item() == pytest.approx(cross_entropy(images, labels, loss.weight, loss.bias) / 2, rel=1e-12)
    assert terms.text.item() == pytest.approx(cross_entropy(texts, labels, loss.weight, loss.bias) / 2, rel=1e-12)
    assert loss(images, texts, torch.tensor(labels)).item() == pytest.approx(sum(terms).item())


def test_precisions_are_the_shares_whose_label_has_the_largest_logit(case):
    loss, images, texts, labels = case
    seen = loss.observed(images, texts, torch.tensor(labels))
    for name, rows in (("image_precision", images), ("text_precision", texts)):
        found = (rows @ loss.weight + loss.bias).argmax(1).tolist()
        assert seen[name].item() == pytest.approx(20 * sum(a == b for a, b in zip(found, labels, strict=True)))


def test_it_starts_nearly_at_the_logarithm_of_the_number_of_classes():
    torch.manual_seed(0)
    loss = IdentityLoss(num_classes=1000, embedding_dim=64)
    assert loss(torch.randn(32, 64), torch.randn(32, 64), torch.arange(32)).item() == pytest.approx(6.908, abs=0.01)
    assert loss.bias.eq(0).all()


def test_half_types_are_computed_in_float32(case):
    loss, images, texts, labels = case
    loss = loss.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(images.bfloat16(), texts.bfloat16(), torch.tensor(labels))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        loss(images.bfloat16().float(), texts.bfloat16().float(), torch.tensor(labels)).item()
    )


def test_a_label_out_of_range_is_named(case):
    loss, images, texts, _ = case
    with pytest.raises(ValueError, match=r"label 4 in row 2 is out of range; expected 0 .. 3"):
        loss(images, texts, torch.tensor([0, 1, 4, 0, 0]))
