"""Mean cosine distances of matching and of other pairs, which a training log shows beside the loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from crosspair.losses.base import check_embeddings, check_labels, unit_vectors


class PairDistances(NamedTuple):
    """Mean cosine distance, 0..2, over pairs of equal and of different labels; NaN where there is no such pair."""

    positive: Tensor
    negative: Tensor


@torch.no_grad()
def pair_distances(
    image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None = None
) -> PairDistances:
    """Mean of 1 - cos(x_i, z_j) over matching and over other image-text pairs of a batch, without gradient.

    image_embeddings [n, d], text_embeddings [m, d]; integer image_labels [n], text_labels [m] (default image_labels).
    Returns two scalar tensors. Raises ValueError for wrong shapes or label types.
    """
    check_embeddings(image_embeddings, text_embeddings)
    image_labels = check_labels(image_labels, len(image_embeddings), "image_labels")
    text_labels = check_labels(
        image_labels if text_labels is None else text_labels, len(text_embeddings), "text_labels"
    )
    device = image_embeddings.device
    # The cosines of two groups of vectors add up to the product of the groups' sums, so no [n, m] matrix is needed.
    found, groups = torch.unique(torch.cat((image_labels, text_labels)).to(device), return_inverse=True)
    images = _GroupSums.of(image_embeddings, groups[: len(image_labels)], len(found))
    texts = _GroupSums.of(text_embeddings, groups[len(image_labels) :], len(found))
    matches, pairs = images.counts @ texts.counts, images.counts.sum() * texts.counts.sum()
    matching = (images.sums * texts.sums).sum()
    everything = images.sums.sum(dim=0) @ texts.sums.sum(dim=0)
    return PairDistances(
        positive=_mean_distance(matching, matches), negative=_mean_distance(everything - matching, pairs - matches)
    )


class _GroupSums(NamedTuple):
    """Sums over each label: of its unit vectors [labels, d] and their number [labels], in float64 if possible."""

    sums: Tensor
    counts: Tensor

    @classmethod
    def of(cls, vectors: Tensor, groups: Tensor, number: int) -> "_GroupSums":
        units = unit_vectors(vectors.to(torch.float32 if vectors.device.type == "mps" else torch.float64))
        ones = units.new_ones(len(units))
        return cls(
            units.new_zeros(number, units.shape[1]).index_add_(0, groups, units),
            ones.new_zeros(number).index_add_(0, groups, ones),
        )


def _mean_distance(cosines: Tensor, pairs: Tensor) -> Tensor:
    return torch.where(pairs > 0, 1 - cosines / pairs, torch.nan)
