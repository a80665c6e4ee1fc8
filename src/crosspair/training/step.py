"""One training step: forward, losses, backward, clipping, update, EMA; with cached gradients for large batches."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crosspair.data.batching import Batch
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.losses import pair_distances
from crosspair.training.distributed import Processes
from crosspair.training.ema import WeightEMA
from crosspair.training.losses import MatchingLosses
from crosspair.training.optimizer import StageOptimizer


@dataclass
class TrainingStep:
    """A training step of a stage. Call it with a batch and the step's number within the stage, from 0."""

    processes: Processes
    model: Any  # the DualEncoder as Fabric wrapped it
    losses: MatchingLosses
    optimizer: StageOptimizer
    ema: WeightEMA | None
    average_before: bool = False
    grad_clip_norm: float | None = None
    mini_batch_size: int = 0  # images that are encoded at a time; 0 takes the whole batch

    def __call__(self, batch: Batch, step: int, *, observe: bool = False) -> dict[str, Tensor]:
        """Train on a batch. Returns detached scalars on the device, by their names in metrics.jsonl.

        observe: add what is only looked at: the distances of pairs, the regularization, and what losses tell besides.
        """
        if self.ema is not None and self.average_before:
            self.ema.update(step)
        self.optimizer.prepare(step)
        in_parts = self._in_parts(batch)
        if in_parts is None:
            image_embeddings, text_embeddings = self.model(
                batch.tokens,
                batch.lengths,
                images=batch.images,
                features=batch.features,
                text_features=batch.text_features,
            )
        else:
            image_embeddings, text_embeddings = in_parts.image_embeddings, in_parts.text_embeddings
        gathered = self.processes.gather(image_embeddings, text_embeddings, batch)
        total, terms = self.losses(image_embeddings, text_embeddings, batch, gathered)
        values = {"loss": total, **terms}
        if observe:
            values |= self.losses.observed(image_embeddings, text_embeddings, batch, gathered)
        seen = self.processes.sum({name: value.detach() for name, value in values.items()})
        if observe:
            seen["positive_distance"], seen["negative_distance"] = pair_distances(*gathered.table)
            seen["regularization"] = self.optimizer.regularization()
        self.optimizer.inner.zero_grad(set_to_none=True)
        # Gradients are averaged over the processes, and it is their shares' sum that counts.
        self.processes.fabric.backward(total * self.processes.size)
        if in_parts is not None:
            in_parts.backward()
            self.processes.average_gradients(self.model.parameters())
        self.processes.average_gradients(self.losses.parameters())
        self.processes.average_statistics(self.model)
        if self.grad_clip_norm is not None:
            seen["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.optimizer.trained, self.grad_clip_norm)
        self.optimizer.inner.step()
        if self.ema is not None and not self.average_before:
            self.ema.update(step)
        return seen

    def _in_parts(self, batch: Batch) -> "EmbeddingsInParts | None":
        """The batch embedded in mini batches, as many in every process; None where one takes it whole."""
        if not self.mini_batch_size:
            return None
        [parts] = self.processes.agree(-(-len(batch.image_labels) // self.mini_batch_size))
        if parts == 1:
            return None
        return EmbeddingsInParts(self.processes.fabric, self.model.module, batch, parts)


def check_finite(loss: Tensor, model: nn.Module | None, where: str) -> None:
    """Raise UserError for a loss that is NaN or infinite, and for such weights (finite losses can lead there).

    model: None looks at the loss only. where: the step, for the user. Reading the loss waits for its device.
    """
    found = f"the loss is {float(loss)}"
    if math.isfinite(loss):
        if model is None or all(bool(value.isfinite().all()) for value in model.parameters()):
            return
        found = "weights are NaN or infinite"
    raise UserError(
        f"{found} at {where}; the last good checkpoint is kept: lower the learning rate or set "
        "optimizer.grad_clip_norm, and train again"
    )


class EmbeddingsInParts:
    """The embeddings of a batch, from features that are made part by part: large batches on small devices.

    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (RepL4NLP 2021): encode all
    parts without keeping what a backward pass needs; take the loss and its gradient at the features; encode each part
    once more and carry its rows of that gradient into the weights. Memory is that of one part, time one more forward
    pass. The projections, whose batch norm is meant for the whole batch, are small and see it whole.

    `image_embeddings` [b, d] and `text_embeddings` [m, d] are for a loss; after its backward pass comes `backward`.

    Random numbers (dropout) are the same in both passes, running statistics move in the first alone. Batch norm of an
    encoder in training mode normalises by a part; without that and dropout the gradients are the whole batch's.
    """

    def __init__(self, fabric: Any, model: DualEncoder, batch: Batch, parts: int) -> None:
        """parts: of consecutive images with their captions. model: not wrapped; its gradients stay in the process."""
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
