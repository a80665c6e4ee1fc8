"""Cross-modal projection classification: classify each modality's embeddings, projected onto the other, by label.

The cross entropy is written for many classes: their weights are read, and never copied to be normalised.
"""

import math
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from crosspair.losses.base import (
    SQUARED_LENGTH_FLOOR,
    check_embeddings,
    check_labels,
    computing_dtype,
    total_of,
    unit_vectors,
)
from crosspair.registry import register_loss
from crosspair.settings import Range


class CMPCTerms(NamedTuple):
    """The two directions of the classification loss, scalars in nats."""

    image_to_text: Tensor
    text_to_image: Tensor


class CMPCPrecisions(NamedTuple):
    """Shares of a batch whose class is found in both directions, scalars in per cent."""

    image: Tensor
    text: Tensor


@register_loss("cmpc")
class CMPCLoss(nn.Module):
    """Cross-modal projection classification (Zhang and Lu, ECCV 2018, eq. 7-11): the sum of `cmpc_terms`.

    num_classes: number of labels, which are 0 .. num_classes - 1.
    label_smoothing: share of the target spread evenly over all classes, 0..1.
    sampled_classes: see `cmpc_terms`; in evaluation mode all classes are taken.
    spare_classes: classes that no label has, behind the others, as the original's classifier has them.
    `weight` [embedding_dim, num_classes + spare_classes] is the classifier that both directions share.
    """

    takes_pairs = True  # called with pairs and their labels; of several processes each with its own pairs

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        label_smoothing: Annotated[float, Range(at_least=0, at_most=1), "Of the targets."] = 0.0,
        *,
        sampled_classes: Annotated[
            int,
            Range(at_least=0),
            "Classes drawn a step beside the batch's own, for fast approximate steps; 0 takes all.",
        ] = 0,
        spare_classes: Annotated[
            int, Range(at_least=0), "Classes that no label has; the original's classifier has some."
        ] = 0,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.sampled_classes = sampled_classes
        self.weight = nn.Parameter(torch.empty(embedding_dim, num_classes + spare_classes))
        nn.init.xavier_uniform_(self.weight)

    def terms(self, image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor) -> CMPCTerms:
        """A named tuple of scalars; arguments and errors as in `cmpc_terms`."""
        sampled_classes = self.sampled_classes if self.training else 0
        settings = (self.weight, self.label_smoothing)
        return cmpc_terms(image_embeddings, text_embeddings, labels, *settings, sampled_classes=sampled_classes)

    def observed(self, image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`cmpc_precisions` as image_precision and text_precision."""
        found = cmpc_precisions(image_embeddings, text_embeddings, labels, self.weight)
        return {"image_precision": found.image, "text_precision": found.text}

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss in nats; arguments and errors as in `cmpc_terms`."""
        return total_of(self.terms(image_embeddings, text_embeddings, labels))

    def extra_repr(self) -> str:
        embedding_dim, num_classes = self.weight.shape
        return f"num_classes={num_classes}, embedding_dim={embedding_dim}, label_smoothing={self.label_smoothing:g}"


def cmpc_terms(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    label_smoothing: float = 0.0,
    *,
    sampled_classes: int = 0,
) -> CMPCTerms:
    """Cross entropy of images projected onto their texts, and of texts projected onto their images.

    x_hat_i = (x_i . z_i / |z_i|) z_i / |z_i| and the logits are W^T x_hat_i with every column of W at unit length, no
    bias (Zhang and Lu, ECCV 2018, eq. 7-11); the text to image term swaps x and z under the same W.

    image_embeddings [p, d], text_embeddings [p, d]: any float type, not normalised; row i of both is one image-text
        pair. Half types are computed in float32, inside autocast too; float64 stays float64.
    labels [p]: integers 0 .. num_classes - 1.
    weight [d, num_classes]: not normalised; gradients are with respect to it as it is.
    sampled_classes: 0 takes all classes. Otherwise a step takes the batch's own and this number of others, drawn
        uniformly without repetition by torch's CPU generator. Each drawn one counts (others / drawn) times in the
        softmax's sum, for the others that were not. So the sum is right on average (without that factor it would lack
        all that was left out), but its logarithm is too low on average, and the gradients are biased with it: in
        proportion to 1 / drawn, and by nothing once every class is drawn.

    A NaN or infinite embedding gives a NaN loss. Raises ValueError for wrong shapes or label types, and for a label out
    of range, naming its row (not under torch.compile). With labels on a GPU this check waits for the device; they may
    stay on the CPU.
    """
    labels = checked_pairs(image_embeddings, text_embeddings, labels, weight)
    with torch.autocast(image_embeddings.device.type, enabled=False):
        # Both directions in one product: at many classes it is reading the weights that takes the time.
        projected = _both_directions(image_embeddings, text_embeddings, weight)
        weight, log_counts = weight.to(projected.dtype), None
        if 0 < sampled_classes < weight.shape[1]:
            classes, labels, log_counts = _sample_classes(labels, sampled_classes, weight)
            weight = weight.index_select(1, classes)
        entropies = class_entropies(projected, labels.repeat(2), weight, label_smoothing, log_counts)
        return CMPCTerms(*entropies.view(2, -1).mean(dim=1).unbind())


@torch.no_grad()
def cmpc_precisions(
    image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor, weight: Tensor
) -> CMPCPrecisions:
    """Per cent of the pairs whose label has the largest logit, of all classes; arguments and errors: `cmpc_terms`.

    image: of images projected onto their texts; text: of texts projected onto their images. No gradients.
    """
    labels = checked_pairs(image_embeddings, text_embeddings, labels, weight)
    with torch.autocast(image_embeddings.device.type, enabled=False):
        projected = _both_directions(image_embeddings, text_embeddings, weight)
        lengths = torch.linalg.vector_norm(weight, dim=0).clamp(min=SQUARED_LENGTH_FLOOR**0.5)
        found = (projected @ weight.to(projected.dtype) / lengths).argmax(dim=1)
        return CMPCPrecisions(*(100 * (found == labels.repeat(2)).view(2, -1).to(projected.dtype).mean(dim=1)).unbind())


def checked_pairs(image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Labels as int64 [p] on the device of the embeddings [p, d]. weight [d, num_classes]. Errors: `cmpc_terms`."""
    check_embeddings(image_embeddings, text_embeddings)
    if len(image_embeddings) != len(text_embeddings):
        raise ValueError(
            f"{len(image_embeddings)} image_embeddings and {len(text_embeddings)} text_embeddings; expected pairs"
        )
    if weight.ndim != 2 or weight.shape[0] != image_embeddings.shape[1]:
        raise ValueError(
            f"embeddings have dimension {image_embeddings.shape[1]}, the weight has shape {tuple(weight.shape)}; "
            "expected [dimension, num_classes]"
        )
    labels = check_labels(labels, len(image_embeddings), "labels")
    _check_range(labels, weight.shape[1])
    return labels.to(image_embeddings.device, non_blocking=True)


def _both_directions(image_embeddings: Tensor, text_embeddings: Tensor, weight: Tensor) -> Tensor:
    """Images projected onto their texts, and below them texts projected onto their images: [2 p, d]."""
    dtype = computing_dtype(image_embeddings, text_embeddings, weight)
    images, texts = image_embeddings.to(dtype), text_embeddings.to(dtype)
    return torch.cat((_project(images, texts), _project(texts, images)))


def _sample_classes(labels: Tensor, number: int, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's classes and others, the labels among them, and the logarithm of how many classes each stands for."""
    own, labels = torch.unique(labels, return_inverse=True)
    left = torch.ones(weight.shape[1], dtype=torch.bool)
    left[own.cpu()] = False
    others = left.nonzero()[:, 0]
    drawn = others[torch.randperm(len(others))[:number]].to(own.device)
    log_counts = weight.new_zeros(len(own) + len(drawn))
    if len(drawn) > 0:
        log_counts[len(own) :] = math.log(len(others) / len(drawn))
    return torch.cat((own, drawn)), labels, log_counts


def _project(vectors: Tensor, onto: Tensor) -> Tensor:
    """Each row of `vectors` projected onto the line through the same row of `onto`, both [p, d]."""
    directions = unit_vectors(onto)
    return (vectors * directions).sum(dim=1, keepdim=True) * directions


def _check_range(labels: Tensor, num_classes: int) -> None:
    if torch.compiler.is_compiling():
        return
    outside = (labels < 0) | (labels >= num_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"label {int(labels[row])} in row {row} is out of range; expected 0 .. {num_classes - 1}")


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
