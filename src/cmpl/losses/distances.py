"""How far apart matching and other pairs are: what a training log shows beside the loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from cmpl.losses.inputs import check_embeddings, check_labels, computing_dtype, unit_vectors


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
    matches = image_labels.to(device, non_blocking=True)[:, None] == text_labels.to(device, non_blocking=True)
    dtype = computing_dtype(image_embeddings, text_embeddings)
    with torch.autocast(device.type, enabled=False):
        distances = 1 - unit_vectors(image_embeddings.to(dtype)) @ unit_vectors(text_embeddings.to(dtype)).T
    return PairDistances(positive=_mean_where(distances, matches), negative=_mean_where(distances, ~matches))


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return values.where(chosen, 0).sum() / chosen.sum()
