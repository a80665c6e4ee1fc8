"""Large effective batches on small devices: the loss sees a whole batch, the encoders a part of it at a time.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (RepL4NLP 2021): encode all parts
without keeping what a backward pass needs; take the loss and its gradient at the features; encode each part once more
and carry its rows of that gradient into the weights. Memory is that of one part, time one more forward pass. The
projections, whose batch norm is meant for the whole batch, are small and see it whole.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crosspair.data.batching import Batch
from crosspair.encode.model import DualEncoder


class EmbeddingsInParts:
    """The embeddings of a batch, from features that are made part by part.

    `image_embeddings` [b, d] and `text_embeddings` [m, d] are for a loss; after its backward pass comes `backward`.

    Random numbers (dropout) are the same in both passes, running statistics move in the first alone. Batch norm of an
    encoder in training mode normalises by a part; without that and dropout the gradients are the whole batch's.
    """

    def __init__(self, fabric: Any, model: DualEncoder, batch: Batch, parts: int) -> None:
        """parts: of consecutive pictures with their captions. model: not wrapped; its gradients stay in the process."""
        cut = batch.split(parts)

        def encode_texts(part: Batch) -> Tensor:
            return model.text_encoder(part.tokens, part.lengths)  # type: ignore[no-any-return]

        def encode_images(part: Batch) -> Tensor:
            assert part.images is not None
            return model.image_features(part.images)

        self.encoders: list[_TwoPasses] = []
        image_features, text_features = batch.features, batch.text_features
        if text_features is None:
            self.encoders.append(_TwoPasses(fabric, model.text_encoder, encode_texts, cut))
            text_features = self.encoders[-1].features
        if image_features is None:
            self.encoders.append(_TwoPasses(fabric, model.image_encoder, encode_images, cut))
            image_features = self.encoders[-1].features
        with fabric.autocast():
            self.image_embeddings = model.embed_image_features(image_features)
            self.text_embeddings = model.embed_text_features(text_features)

    def backward(self) -> None:
        """Add the gradients of the encoders' weights."""
        for encoder in self.encoders:
            encoder.backward()


class _TwoPasses:
    """One encoder: the features of all parts without a graph, later part by part with it."""

    def __init__(self, fabric: Any, encoder: nn.Module, encode: Callable[[Batch], Tensor], parts: list[Batch]) -> None:
        self.fabric = fabric
        self.encoder = encoder
        self.encode = encode
        self.parts = parts
        self.device = parts[0].tokens.device
        self.random_states = []
        found = []
        with torch.no_grad(), fabric.autocast():
            for part in parts:
                self.random_states.append(_random_states(self.device))
                found.append(encode(part))
        self.rows = [len(features) for features in found]
        self.trains = any(value.requires_grad for value in encoder.parameters())
        self.features = torch.cat(found).requires_grad_(self.trains)

    def backward(self) -> None:
        if not self.trains:
            return
        assert self.features.grad is not None
        after = _random_states(self.device)
        statistics = [(value, value.clone()) for value in self.encoder.buffers()]
        gradients = torch.split(self.features.grad, self.rows)
        for part, states, gradient in zip(self.parts, self.random_states, gradients, strict=True):
            _set_random_states(self.device, states)
            with self.fabric.autocast():
                features = self.encode(part)
            self.fabric.backward(features, gradient)
        for value, before in statistics:
            value.copy_(before)
        _set_random_states(self.device, after)


def _generators(device: torch.device) -> list[Any]:
    """Modules with get_rng_state and set_rng_state, of all that a forward pass on `device` may draw from."""
    return [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]


def _random_states(device: torch.device) -> list[Tensor]:
    return [generator.get_rng_state() for generator in _generators(device)]


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    for generator, state in zip(_generators(device), states, strict=True):
        generator.set_rng_state(state)
