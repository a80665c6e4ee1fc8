from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from crosspair.data.batching import Batch
from crosspair.errors import UserError
from crosspair.losses import CMPMLoss, InfoNCELoss, SDMLoss, SigLIPLoss, TripletLoss, cmpc_precisions
from crosspair.registry import LOSSES, register_loss
from crosspair.training.losses import MatchingLosses

EVERY = {
    "cmpm": {"weight": 0.5, "scale": 20.0},
    "cmpc": 0.25,
    "infonce": 1.0,
    "sdm": 2.0,
    "triplet": 3.0,
    "siglip": 4.0,
}


@pytest.fixture
def batch() -> Batch:
    """3 pictures, two of one label, with 5 captions."""
    rows = torch.tensor([0, 0, 1, 2, 2])
    labels = torch.tensor([0, 1, 0])
    return Batch(
        tokens=torch.zeros(5, 1, dtype=torch.int64),
        lengths=torch.ones(5, dtype=torch.int64),
        image_labels=labels,
        text_labels=labels[rows],
        image_rows=rows,
    )


@pytest.fixture
def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 8), torch.randn(5, 8)


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ({"infonce": {"weight": 2.0, "temperature": 0.05}}, InfoNCELoss(0.05)),
        ({"sdm": {"weight": 2.0, "temperature": 0.1}}, SDMLoss(0.1)),
        ({"triplet": {"weight": 2.0, "margin": 0.3}}, TripletLoss(0.3)),
        ({"siglip": {"weight": 2.0, "temperature": 0.2, "bias": -1.0}}, SigLIPLoss(0.2, -1.0)),
        ({"cmpm": 2.0}, CMPMLoss()),
        ({"cmpm": {"weight": 2.0, "scale": 20.0}}, SDMLoss(1 / 20)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_loss_alone_is_itself_times_its_weight(settings, alone, batch, embeddings):
    losses = MatchingLosses(settings, 2, 8)
    total, terms = losses(*embeddings, batch)
    expected = alone(*embeddings, batch.image_labels, batch.text_labels)
    torch.testing.assert_close(total, 2 * expected)
    torch.testing.assert_close(terms[next(iter(settings))], expected)


def test_several_losses_add_up_and_show_their_parts_and_scales(batch, embeddings):
    losses = MatchingLosses(EVERY, 2, 8)
    total, terms = losses(*embeddings, batch)
    assert total.item() == pytest.approx(sum(losses.weights[name] * terms[name].item() for name in losses.weights))
    for name in ("cmpm", "cmpc", "infonce", "sdm", "triplet"):
        assert terms[name] == terms[f"{name}_image_to_text"] + terms[f"{name}_text_to_image"]
    assert terms["siglip"] == terms["siglip_positive"] + terms["siglip_negative"]
    scales = {name: terms[name].item() for name in ("cmpm_scale", "infonce_scale", "siglip_scale", "siglip_bias")}
    expected = {"cmpm_scale": 20, "infonce_scale": 1 / 0.07, "siglip_scale": 10, "siglip_bias": -10}
    assert scales == pytest.approx(expected, rel=1e-6)


def test_scales_and_biases_learn(batch, embeddings):
    losses = MatchingLosses({"cmpm": {"weight": 1.0, "scale": 20.0}, "infonce": 1.0, "siglip": 1.0}, 2, 8)
    losses(*embeddings, batch)[0].backward()
    learned = dict(losses.named_parameters())
    scales = {f"{name}_loss.scale.logarithm" for name in ("cmpm", "infonce", "siglip")}
    assert set(learned) == scales | {"siglip_loss.bias"}
    assert all(value.grad is not None and value.grad != 0 for value in learned.values())


def test_what_takes_no_part_has_no_parameters():
    assert not list(MatchingLosses({"cmpm": 1.0, "sdm": 1.0, "triplet": 1.0}, 2, 8).parameters())
    fixed = MatchingLosses({"infonce": {"weight": 1.0, "learned": False}}, 2, 8)
    assert not any(value.requires_grad for value in fixed.parameters())


def test_heads_are_matched_each_by_itself_and_add_up(batch, embeddings):
    torch.manual_seed(1)
    both = MatchingLosses(EVERY, 2, 8, heads=2)
    one = MatchingLosses(EVERY, 2, 4)
    expected = []
    for head in range(2):
        one["cmpc"].weight.data = both["cmpc"][head].weight.data
        expected.append(one(*(value[:, 4 * head : 4 * head + 4] for value in embeddings), batch))
    total, terms = both(*embeddings, batch)
    torch.testing.assert_close(total, expected[0][0] + expected[1][0])
    assert terms.keys() == expected[0][1].keys()
    for name, value in terms.items():
        torch.testing.assert_close(value, (expected[0][1][name] + expected[1][1][name]) / 2)
    assert (total - MatchingLosses(EVERY, 2, 8)(*embeddings, batch)[0]).abs() > 0.1


@pytest.fixture
def own(monkeypatch) -> Callable[[str, Any], None]:
    """Registers losses for the time of a test."""
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    return lambda name, thing: register_loss(name)(thing)


class Terms(NamedTuple):
    near: torch.Tensor
    far: torch.Tensor


def half(image_embeddings, text_embeddings, image_labels, text_labels, *, share: float = 0.5):
    cosines = image_embeddings @ text_embeddings.T
    matches = image_labels[:, None] == text_labels
    return share * cosines[matches].mean() - (1 - share) * cosines[~matches].mean()


def test_a_function_is_a_loss_with_its_settings(own, batch, embeddings):
    own("half", half)
    losses = MatchingLosses({"half": {"weight": 3.0, "share": 0.2}, "cmpm": 1.0}, 2, 8)
    total, terms = losses(*embeddings, batch)
    expected = half(*embeddings, batch.image_labels, batch.text_labels, share=0.2)
    torch.testing.assert_close(terms["half"], expected)
    torch.testing.assert_close(total, 3 * expected + terms["cmpm"])
    assert [name for name in terms if name.startswith("half")] == ["half"]


def test_a_named_tuple_gives_a_loss_its_terms(own, batch, embeddings):
    own("both", lambda images, texts, image_labels, text_labels: Terms(images.sum(), texts.mean()))
    _, terms = MatchingLosses({"both": 1.0}, 2, 8)(*embeddings, batch)
    assert terms["both_near"] == embeddings[0].sum()
    assert terms["both_far"] == embeddings[1].mean()
    assert terms["both"] == terms["both_near"] + terms["both_far"]


class Proxies(nn.Module):
    """Learns a vector for each label; labels are numbers below num_classes."""

    def __init__(self, num_classes: int, embedding_dim: int, *, start: float = 1.0):
        super().__init__()
        self.proxies = nn.Parameter(torch.full((num_classes, embedding_dim), start))

    def forward(self, image_embeddings, text_embeddings, image_labels, text_labels):
        images = (image_embeddings - self.proxies[image_labels]).square().mean()
        return images + (text_embeddings - self.proxies[text_labels]).square().mean()

    def learned(self):
        return {"size": self.proxies.mean()}


def test_a_module_learns_and_is_given_what_it_asks_for(own, batch, embeddings):
    own("proxies", Proxies)
    losses = MatchingLosses({"proxies": {"weight": 1.0, "start": 0.5}}, 2, 8)
    total, terms = losses(*embeddings, batch)
    total.backward()
    assert losses["proxies"].proxies.shape == (2, 8)
    assert losses["proxies"].proxies.grad.abs().sum() > 0
    assert terms["proxies_size"] == 0.5
    assert list(losses.state_dict()) == ["proxies_loss.proxies"]
    heads = MatchingLosses({"proxies": 1.0}, 2, 8, heads=2)
    assert [tuple(value.shape) for value in heads.parameters()] == [(2, 4), (2, 4)]
    assert torch.isfinite(heads(*embeddings, batch)[0])


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lambda *table: table[0], r"the loss 'wrong' returns a Tensor of shape \(3, 8\); expected a scalar tensor"),
        (lambda *table: 1.0, "the loss 'wrong' returns a float; expected a scalar tensor or a named tuple"),
        (lambda *table: Terms(table[0], table[0].sum()), r"returns a Tensor of shape \(3, 8\)"),
        (dict, "the loss 'wrong' is a dict; expected a function or a torch.nn.Module"),
        (type("Refuses", (nn.Module,), {"__init__": lambda self: 1 / "x"}), "the loss 'wrong' can't be made"),
    ],
)
def test_what_is_no_loss_is_one_sentence(own, batch, embeddings, thing, message):
    own("wrong", thing)
    with pytest.raises(UserError, match=message) as caught:
        MatchingLosses({"wrong": 1.0}, 2, 8)(*embeddings, batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("heads", [1, 2])
def test_precisions_of_the_classes_are_observed_and_not_minimised(batch, embeddings, heads):
    losses = MatchingLosses({"cmpm": 1.0, "cmpc": 1.0}, 2, 8, heads)
    images, texts = embeddings
    seen = losses.observed(images, texts, batch)
    assert set(seen) == {"cmpc_image_precision", "cmpc_text_precision"}
    parts = [losses["cmpc"]] if heads == 1 else list(losses["cmpc"])
    expected = [
        cmpc_precisions(image[batch.image_rows], text, batch.text_labels, part.weight).image
        for image, text, part in zip(images.chunk(heads, 1), texts.chunk(heads, 1), parts, strict=True)
    ]
    torch.testing.assert_close(seen["cmpc_image_precision"], torch.stack(expected).mean())
    assert not any(value.requires_grad for value in seen.values())
    assert losses.observed(images, texts, batch).keys() - losses(images, texts, batch)[1].keys() == seen.keys()
