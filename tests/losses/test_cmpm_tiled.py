"""The tiles against the formula as written, for which test_cmpm.py has the references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosspair.losses import CMPMLoss, cmpm, cmpm_terms, cmpm_tiled

Values = tuple[Tensor, Tensor, Tensor, Tensor]


def batch(seed: int, n: int, m: int, classes: int, dim: int = 6, spread: float = 4) -> Values:
    """Two noisy views of as many centres as there are classes, in float64, in no order of labels."""
    generator = torch.Generator().manual_seed(seed)
    classes = min(classes, n, m)
    centres = torch.randn(classes, dim, dtype=torch.float64, generator=generator) * spread
    sides = []
    for rows in (n, m):
        labels = torch.cat([torch.arange(classes), torch.randint(classes, (rows - classes,), generator=generator)])
        labels = labels[torch.randperm(rows, generator=generator)]
        noise = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
        sides += [centres[labels] + noise, labels - classes // 2]
    return sides[0], sides[2], sides[1], sides[3]


def terms_and_gradients(
    values: Values, monkeypatch: pytest.MonkeyPatch, side: int | None = None, block_rows: int = 5
) -> Values:
    """Both terms, and the gradients of a sum that tells them apart; by tiles of side x side entries if given."""
    image_embeddings, text_embeddings = (value.clone().requires_grad_() for value in values[:2])
    with monkeypatch.context() as patch:
        if side is not None:
            patch.setattr(cmpm, "tile_side", lambda device: 0)
            patch.setattr(cmpm_tiled, "_TILE_SIDE", {"cpu": side})
            patch.setattr(cmpm_tiled, "_BLOCK_ROWS", block_rows)
        terms = cmpm_terms(image_embeddings, text_embeddings, *values[2:])
        gradients = torch.autograd.grad(
            terms.image_to_text - 0.3 * terms.text_to_image, (image_embeddings, text_embeddings)
        )
    return *(term.detach() for term in terms), *gradients


def share(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    classes=st.integers(1, 40),
    side=st.integers(1, 20),
    block_rows=st.integers(1, 20),
)
@settings(max_examples=30, deadline=None)
def test_tiles_of_any_size_give_the_plain_terms_and_gradients(
    seed: int, n: int, m: int, classes: int, side: int, block_rows: int
) -> None:
    values = batch(seed, n, m, classes)
    monkeypatch = pytest.MonkeyPatch()
    expected = terms_and_gradients(values, monkeypatch)
    for found, value in zip(terms_and_gradients(values, monkeypatch, side, block_rows), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [1.0, 10.0, 25.0])
def test_float32_lies_within_1e_5_of_float64(length: float, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, image_labels, text_labels = batch(5, 300, 500, 200, dim=64, spread=1)
    images, texts = (length * torch.nn.functional.normalize(side) for side in (images, texts))
    expected = terms_and_gradients((images, texts, image_labels, text_labels), monkeypatch)
    found = terms_and_gradients((images.float(), texts.float(), image_labels, text_labels), monkeypatch, side=128)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert share(value.double(), reference) <= 1e-5


def test_its_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmpm, "tile_side", lambda device: 0)
    monkeypatch.setattr(cmpm_tiled, "_TILE_SIDE", {"cpu": 4})
    monkeypatch.setattr(cmpm_tiled, "_BLOCK_ROWS", 3)
    images, texts, *labels = batch(9, 7, 9, 5, spread=1)
    images.requires_grad_()
    texts.requires_grad_()
    assert torch.autograd.gradcheck(lambda images, texts: tuple(cmpm_terms(images, texts, *labels)), (images, texts))


@pytest.mark.parametrize("length", [1e3, 1e6])
def test_long_vectors_have_no_softmax_that_overflows_or_vanishes(
    length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = batch(10, 30, 40, 15)
    values = (length * values[0], length * values[1], *values[2:])
    expected = terms_and_gradients(values, monkeypatch)
    for found, value in zip(terms_and_gradients(values, monkeypatch, 8), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-9)
    single = tuple(value.float() if value.is_floating_point() else value for value in values)
    assert all(found.isfinite().all() for found in terms_and_gradients(single, monkeypatch, 8))


@pytest.mark.parametrize("labels", ["one for all", "neighbours at 2^62"])
def test_extreme_labels_give_the_plain_gradients(labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, *_ = batch(1, 30, 30, 30)
    shared = torch.zeros(30, dtype=torch.int64) if labels == "one for all" else 2**62 - torch.randperm(30)
    expected = terms_and_gradients((images, texts, shared, shared), monkeypatch)
    found = terms_and_gradients((images, texts, shared, shared), monkeypatch, side=8)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-12)


def test_zero_and_very_short_rows_have_the_plain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    values = batch(2, 20, 25, 10)
    values[0][3] = 0
    values[0][4] *= 1e-8
    values[1][7] = 0
    expected = terms_and_gradients(values, monkeypatch)
    for found, value in zip(terms_and_gradients(values, monkeypatch, 8), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_reaches_both_terms(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = batch(3, 20, 25, 10)
    values[1][24, 2] = wrong
    image_to_text, text_to_image, *_ = terms_and_gradients(values, monkeypatch, side=8)
    assert image_to_text.isnan()
    assert text_to_image.isnan()


def test_what_needs_no_gradient_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmpm, "tile_side", lambda device: 0)
    monkeypatch.setattr(cmpm_tiled, "_TILE_SIDE", {"cpu": 8})
    images, texts, image_labels, text_labels = batch(4, 20, 25, 10)
    for trained, other in ((images, texts), (texts, images)):
        trained.requires_grad_()
        loss = CMPMLoss()(images, texts, image_labels, text_labels)
        loss.backward()
        trained.requires_grad_(False)
        assert trained.grad is not None
        assert other.grad is None
        trained.grad = None
    assert not CMPMLoss()(images, texts, image_labels, text_labels).requires_grad


def test_a_batch_beyond_one_tile_is_computed_by_tiles_unless_its_ratios_are_asked_for() -> None:
    labels = torch.arange(1025) % 4
    texts = torch.randn(1024, 2, requires_grad=True)
    assert "TiledDivergences" in _graph(cmpm_terms(torch.randn(1025, 2), texts, labels, labels[:-1]).text_to_image)
    fitting = cmpm_terms(torch.randn(1024, 2), texts, labels[:-1])
    assert "TiledDivergences" not in _graph(fitting.text_to_image)
    ratios = cmpm_terms(torch.randn(1025, 2), texts, labels, labels[:-1], ratio_epsilon=1e-8)
    assert "TiledDivergences" not in _graph(ratios.text_to_image)


def _graph(value: Tensor) -> str:
    assert value.grad_fn is not None
    return value.grad_fn.name()


def test_products_in_bf16_change_loss_and_gradients_by_less_than_a_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, *labels = batch(6, 700, 900, 300, dim=64, spread=1)
    images, texts = (25 * torch.nn.functional.normalize(side).float() for side in (images, texts))
    monkeypatch.setattr(cmpm, "tile_side", lambda device: 256)
    images.requires_grad_()
    texts.requires_grad_()
    losses = [
        CMPMLoss(matmul_precision=matmul_precision)(images, texts, *labels) for matmul_precision in ("float32", "bf16")
    ]
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-2)
    assert losses[1] != losses[0]
    exact, coarse = (torch.autograd.grad(loss, (images, texts)) for loss in losses)
    for found, expected in zip(coarse, exact, strict=True):
        assert share(found, expected) < 6e-3


def test_an_unknown_matmul_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="matmul_precision is 'int8'; expected one of float32, bf16"):
        cmpm_terms(torch.randn(2, 3), torch.randn(2, 3), torch.arange(2), matmul_precision="int8")  # type: ignore[arg-type]


def test_backward_inside_autocast_keeps_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    values = tuple(value.float() if value.is_floating_point() else value for value in batch(7, 40, 40, 20))
    expected = terms_and_gradients(values, monkeypatch, side=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = terms_and_gradients(values, monkeypatch, side=16)
    assert all(torch.equal(value, reference) for value, reference in zip(found, expected, strict=True))


def test_it_compiles_into_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmpm, "tile_side", lambda device: 0)
    monkeypatch.setattr(cmpm_tiled, "_TILE_SIDE", {"cpu": 12})
    images, texts, image_labels, text_labels = (
        value.float() if value.is_floating_point() else value for value in batch(8, 12, 20, 10)
    )
    images.requires_grad_()
    loss = CMPMLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    expected = loss(images, texts, image_labels, text_labels)
    found = compiled(images, texts, image_labels, text_labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, images), torch.autograd.grad(expected, images))
