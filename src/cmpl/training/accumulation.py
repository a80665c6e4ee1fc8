"""Large effective batches on small devices: the loss sees a whole batch, the encoders a part of it at a time.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (RepL4NLP 2021): embed all parts
without keeping what a backward pass needs; take the loss and its gradient at the embeddings; embed each part once more
and carry its rows of that gradient into the weights. Memory is that of one part, time one more forward pass.
"""

from typing import Any

import torch
from torch import Tensor

from cmpl.data.batching import Batch


class CachedEmbeddings:
    """The embeddings of a batch, made part by part.

    `image_embeddings` [b, d] and `text_embeddings` [m, d] are leaves: call `backward` once their `grad` is there.

    Random numbers (dropout) are the same in both passes, running statistics move in the second alone. Batch norm in
    training mode normalises by the statistics of a part; without it and dropout the gradients are the whole batch's.
    """

    def __init__(self, model: Any, batch: Batch, parts: int) -> None:
        """model: the DualEncoder as Fabric wrapped it. parts: consecutive pictures with their captions."""
        self.model = model
        self.parts = batch.split(parts)
        self.random_states = []
        statistics = [(value, value.clone()) for value in model.buffers()]
        embedded = []
        with torch.no_grad():
            for part in self.parts:
                self.random_states.append(_random_states(part.tokens.device))
                embedded.append(_embed(model, part))
            for value, before in statistics:
                value.copy_(before)
        images, texts = zip(*embedded, strict=True)
        self.image_embeddings = torch.cat(images).requires_grad_()
        self.text_embeddings = torch.cat(texts).requires_grad_()

    def backward(self, fabric: Any) -> None:
        """Add the gradients of the weights; several processes exchange them once, with the last part."""
        assert self.image_embeddings.grad is not None
        assert self.text_embeddings.grad is not None
        image_gradients = self.image_embeddings.grad.split([len(part.image_labels) for part in self.parts])
        text_gradients = self.text_embeddings.grad.split([len(part.text_labels) for part in self.parts])
        device = self.parts[0].tokens.device
        after = _random_states(device)
        for number, part in enumerate(self.parts):
            _set_random_states(device, self.random_states[number])
            with fabric.no_backward_sync(self.model, enabled=number + 1 < len(self.parts)):
                images, texts = _embed(self.model, part)
                # A scalar whose gradient at the embeddings is the cached one.
                fabric.backward((images * image_gradients[number]).sum() + (texts * text_gradients[number]).sum())
        _set_random_states(device, after)


def _embed(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    embeddings: tuple[Tensor, Tensor] = model(
        batch.tokens, batch.lengths, pictures=batch.pictures, features=batch.features
    )
    return embeddings


def _generators(device: torch.device) -> list[Any]:
    """Modules with get_rng_state and set_rng_state, of all that a forward pass on `device` may draw from."""
    return [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]


def _random_states(device: torch.device) -> list[Tensor]:
    return [generator.get_rng_state() for generator in _generators(device)]


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    for generator, state in zip(_generators(device), states, strict=True):
        generator.set_rng_state(state)
