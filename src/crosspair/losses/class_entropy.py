"""Cross entropy against classes of unit length, for many classes: their weights are read, never copied."""

from typing import Any

import torch
from torch import Tensor

from crosspair.losses.inputs import SQUARED_LENGTH_FLOOR


def class_entropies(
    vectors: Tensor, targets: Tensor, weight: Tensor, label_smoothing: float = 0.0, log_counts: Tensor | None = None
) -> Tensor:
    """Cross entropy in nats, [n], of softmax(vectors . w_k / |w_k|) over the columns of `weight`.

    vectors [n, d], weight [d, k]: one type. targets [n]: int64, 0 .. k - 1.
    log_counts [k]: column k stands for exp(log_counts[k]) classes with its logit; by default for itself alone.

    The logits are divided by the columns' lengths, and so is their gradient: normalised weights would be two more
    matrices of d x k to write, read and differentiate, which takes longer than the products at 100,000 classes.
    """
    entropies: Tensor = _ClassEntropies.apply(vectors, targets, weight, label_smoothing, log_counts)
    return entropies


class _ClassEntropies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        targets: Tensor,
        weight: Tensor,
        label_smoothing: float,
        log_counts: Tensor | None,
    ) -> Tensor:
        lengths = torch.linalg.vector_norm(weight, dim=0)
        logits = (vectors @ weight).div_(lengths.clamp(min=SQUARED_LENGTH_FLOOR**0.5))
        log_totals = (logits if log_counts is None else logits + log_counts).logsumexp(dim=1)
        ctx.save_for_backward(vectors, targets, weight, lengths, logits, log_totals, log_counts)
        ctx.label_smoothing = label_smoothing
        return _entropies(logits, log_totals, targets, label_smoothing, log_counts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        vectors, targets, weight, lengths, logits, log_totals, log_counts = ctx.saved_tensors
        smoothing = ctx.label_smoothing
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            entropies = _differentiable(vectors, targets, weight, smoothing, log_counts)
            wanted = [tensor for tensor in (vectors, weight) if tensor.requires_grad]
            found = iter(torch.autograd.grad(entropies, wanted, upstream, create_graph=True))
            by_vectors, by_weight = (next(found) if tensor.requires_grad else None for tensor in (vectors, weight))
            return by_vectors, None, by_weight, None, None
        with torch.autocast(vectors.device.type, enabled=False):
            shifted = logits - log_totals[:, None]
            gradient = (shifted if log_counts is None else shifted.add_(log_counts)).exp_()
            gradient -= smoothing * _shares(logits, log_counts)
            gradient.scatter_add_(1, targets[:, None], torch.full_like(log_totals[:, None], smoothing - 1))
            gradient *= upstream[:, None]
            held = lengths.clamp(min=SQUARED_LENGTH_FLOOR**0.5)
            # A column counts by its direction alone, unless it is too short to have one.
            radial = (gradient * logits).sum(0) / held.square() * (lengths >= SQUARED_LENGTH_FLOOR**0.5)
            gradient /= held
            by_weight = (vectors.T @ gradient).addcmul_(weight, -radial) if ctx.needs_input_grad[2] else None
            return gradient @ weight.T, None, by_weight, None, None


def _differentiable(
    vectors: Tensor, targets: Tensor, weight: Tensor, label_smoothing: float, log_counts: Tensor | None
) -> Tensor:
    squared_lengths = weight.square().sum(0).clamp(min=SQUARED_LENGTH_FLOOR)
    logits = vectors @ weight * squared_lengths.rsqrt()
    log_totals = (logits if log_counts is None else logits + log_counts).logsumexp(dim=1)
    return _entropies(logits, log_totals, targets, label_smoothing, log_counts)


def _entropies(
    logits: Tensor, log_totals: Tensor, targets: Tensor, label_smoothing: float, log_counts: Tensor | None
) -> Tensor:
    entropies = log_totals - (1 - label_smoothing) * logits.gather(1, targets[:, None])[:, 0]
    if label_smoothing:
        entropies = entropies - label_smoothing * (logits @ _shares(logits, log_counts))
    return entropies


def _shares(logits: Tensor, log_counts: Tensor | None) -> Tensor:
    """The share of all classes that each column stands for, [k]."""
    if log_counts is None:
        return logits.new_full((logits.shape[1],), 1 / logits.shape[1])
    return log_counts.softmax(dim=0)
