"""Cross-modal projection matching: the distribution of projections against the distribution of matches."""

import math
from typing import Annotated, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from crosspair.losses.base import (
    LearnedScale,
    MatchingLoss,
    check_embeddings,
    checked_labels,
    computing_dtype,
    unit_vectors,
)
from crosspair.losses.cmpm_tiled import MatmulPrecision, tile_side, tiled_divergences
from crosspair.registry import register_loss
from crosspair.settings import Range

LARGEST_SCALE = 100.0


class CMPMTerms(NamedTuple):
    """The two directions of the matching loss, scalars in nats."""

    image_to_text: Tensor
    text_to_image: Tensor


@register_loss("cmpm")
class CMPMLoss(MatchingLoss):
    """Cross-modal projection matching (Zhang and Lu, ECCV 2018, eq. 1-6): the sum of `cmpm_terms`."""

    def __init__(
        self,
        epsilon: Annotated[float, Range(above=0), "Added to q; bounds the loss of a pair that does not match."] = 1e-8,
        *,
        scale: Annotated[
            float | None,
            Range(above=0, at_most=LARGEST_SCALE),
            "null projects as the paper does; a number brings both embeddings to this length first, and learns it.",
        ] = None,
        ratio_epsilon: Annotated[
            float, Range(at_least=0), "Added to p / q inside the logarithm; the original adds 1e-8."
        ] = 0.0,
        matmul_precision: Annotated[
            MatmulPrecision,
            "Of batches of over a million pairs on a CPU: bf16 takes 0.6 of the time, gradients are off by 0.4 %.",
        ] = "float32",
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.ratio_epsilon = ratio_epsilon
        self.matmul_precision: MatmulPrecision = matmul_precision
        self.scale = None if scale is None else LearnedScale(scale, largest=LARGEST_SCALE)

    def terms(
        self, image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None = None
    ) -> CMPMTerms:
        images, texts = self._scaled(image_embeddings, text_embeddings)
        settings = (self.epsilon, self.ratio_epsilon)
        return cmpm_terms(images, texts, image_labels, text_labels, *settings, matmul_precision=self.matmul_precision)

    def row_terms(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        image_labels: Tensor,
        text_labels: Tensor,
        image_rows: slice,
        text_rows: slice,
    ) -> CMPMTerms:
        """The share of `terms` that some rows contribute; see `cmpm_share`."""
        images, texts = self._scaled(image_embeddings, text_embeddings)
        settings = (self.epsilon, self.ratio_epsilon)
        return cmpm_share(images, texts, image_labels, text_labels, image_rows, text_rows, *settings)

    def learned(self) -> dict[str, Tensor]:
        return {} if self.scale is None else {"scale": self.scale()}

    def _scaled(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is None:
            return images, texts
        check_embeddings(images, texts)
        dtype = computing_dtype(images, texts)
        with torch.autocast(images.device.type, enabled=False):
            scale = self.scale()
            return scale * unit_vectors(images.to(dtype)), scale * unit_vectors(texts.to(dtype))

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon:g}, matmul_precision={self.matmul_precision}"


def cmpm_terms(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    epsilon: float = 1e-8,
    ratio_epsilon: float = 0.0,
    *,
    matmul_precision: MatmulPrecision = "float32",
) -> CMPMTerms:
    """KL(p || q) from images to texts and from texts to images (Zhang and Lu, ECCV 2018, eq. 1-6).

    p_ij = softmax_j(x_i . z_j / |z_j|) over all texts j of the batch, q_ij is uniform over the texts matching image i,
    and the image to text term is mean_i sum_j p_ij log(p_ij / (q_ij + epsilon)); the other direction swaps x and z.

    image_embeddings [n, d], text_embeddings [m, d]: any float type, not normalised. Half types are computed in float32,
        inside autocast too; float64 stays float64.
    image_labels [n], text_labels [m]: integers, equal means match; text_labels defaults to image_labels, then n = m.
    epsilon, above 0, bounds log q where nothing matches.
    ratio_epsilon is added to the ratio inside the logarithm. The original adds 1e-8, which changes a term by at most
        1e-8 nats; it is not in the paper and not kept by default.
    matmul_precision: how a batch that is computed by tiles multiplies its matrices. "bf16" takes 0.6 of the time where
    the processor multiplies in bfloat16. Its gradients are off by about 0.4 % (norm of the difference over the norm),
    by more where they nearly vanish.

    A batch of more pairs than fit into a tile (1024 x 1024 on a CPU, 4096 x 4096 elsewhere) is computed by tiles, in
    memory that grows with n + m instead of n m. Its gradients can't be differentiated again; those of smaller batches
    can. A ratio_epsilon needs all ratios at once: with it no batch is computed by tiles.

    A NaN or infinite embedding gives a NaN loss. Raises ValueError for wrong shapes or label types, and when an image
    has no matching text or a text no matching image, naming its row; under torch.compile matches are not checked. With
    text_labels on a GPU this check waits for the device; labels may stay on the CPU, and then it does not.
    """
    if matmul_precision not in get_args(MatmulPrecision):
        raise ValueError(
            f"matmul_precision is '{matmul_precision}'; expected one of {', '.join(get_args(MatmulPrecision))}"
        )
    image_labels, text_labels = checked_labels(image_embeddings, text_embeddings, image_labels, text_labels)
    device = image_embeddings.device
    image_labels, text_labels = (labels.to(device, non_blocking=True) for labels in (image_labels, text_labels))
    dtype = computing_dtype(image_embeddings, text_embeddings)
    images, texts = image_embeddings.to(dtype), text_embeddings.to(dtype)
    with torch.autocast(device.type, enabled=False):
        if ratio_epsilon == 0 and len(images) * len(texts) > tile_side(device) ** 2:
            return CMPMTerms(*tiled_divergences(images, texts, image_labels, text_labels, epsilon, matmul_precision))
        matches = image_labels[:, None] == text_labels
        return CMPMTerms(
            image_to_text=_matching_divergence(images @ unit_vectors(texts).T, matches, epsilon, ratio_epsilon),
            text_to_image=_matching_divergence(texts @ unit_vectors(images).T, matches.T, epsilon, ratio_epsilon),
        )


def _matching_divergence(projections: Tensor, matches: Tensor, epsilon: float, ratio_epsilon: float) -> Tensor:
    """Mean over rows of sum_j p log(p / (q + epsilon)): p = softmax(projections) [n, m], q uniform over the matches.

    q takes two values in a row, so no [n, m] logarithm of it is needed: p is measured against the value at a match, and
    the share of p that went astray is charged the difference of the two.
    """
    log_p = F.log_softmax(projections, dim=1)
    p = log_p.exp()
    log_q_at_match = (1 / matches.sum(dim=1).to(p.dtype) + epsilon).log()
    if ratio_epsilon:
        log_q = torch.where(matches, log_q_at_match[:, None], math.log(epsilon))
        log_ratio = torch.logaddexp(log_p - log_q, log_p.new_tensor(ratio_epsilon).log())
        return (p * log_ratio).sum(dim=1).mean()
    against_match = (p * (log_p - log_q_at_match[:, None])).sum(dim=1)
    astray = p.masked_fill(matches, 0).sum(dim=1)
    return (against_match + astray * (log_q_at_match - math.log(epsilon))).mean()


def cmpm_share(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    image_rows: slice,
    text_rows: slice,
    epsilon: float = 1e-8,
    ratio_epsilon: float = 0.0,
) -> CMPMTerms:
    """The share of the whole batch's `cmpm_terms` that images `image_rows` and texts `text_rows` contribute.

    The shares of slices that together hold every row once sum to `cmpm_terms`, and so do their gradients. A share costs
    the rows' part of the two products, [own images, m] and [own texts, n].

    Slices have a start and a stop; the other arguments and errors are those of `cmpm_terms`, over the whole batch.
    """
    image_labels, text_labels = checked_labels(image_embeddings, text_embeddings, image_labels, text_labels)
    dtype = computing_dtype(image_embeddings, text_embeddings)
    images, texts = image_embeddings.to(dtype), text_embeddings.to(dtype)
    image_labels, text_labels = (labels.to(images.device, non_blocking=True) for labels in (image_labels, text_labels))

    def share(own: Tensor, others: Tensor, labels: Tensor, other_labels: Tensor, rows: slice) -> Tensor:
        matches = labels[rows, None] == other_labels
        divergence = _matching_divergence(own[rows] @ unit_vectors(others).T, matches, epsilon, ratio_epsilon)
        share_of_rows: float = (rows.stop - rows.start) / len(own)
        return divergence * share_of_rows

    with torch.autocast(images.device.type, enabled=False):
        return CMPMTerms(
            image_to_text=share(images, texts, image_labels, text_labels, image_rows),
            text_to_image=share(texts, images, text_labels, image_labels, text_rows),
        )
