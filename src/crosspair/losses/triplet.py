"""Triplet loss with hardest negatives: a match must be closer by a margin than the closest item that is none."""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from crosspair.losses.base import MatchingLoss, matching_inputs, unit_vectors
from crosspair.registry import register_loss
from crosspair.settings import Range


class TripletTerms(NamedTuple):
    """The two directions of the triplet loss, scalars of cosine."""

    image_to_text: Tensor
    text_to_image: Tensor


@register_loss("triplet")
class TripletLoss(MatchingLoss):
    """Triplet loss with hardest negatives (Faghri et al., VSE++, BMVC 2018, eq. 6): the sum of `triplet_terms`."""

    def __init__(
        self,
        margin: Annotated[
            float, Range(at_least=0), "By how much a match's cosine should exceed that of the hardest negative."
        ] = 0.2,
    ) -> None:
        super().__init__()
        self.margin = margin

    def terms(
        self, image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None = None
    ) -> TripletTerms:
        table = (image_embeddings, text_embeddings, image_labels, text_labels)
        return triplet_terms(*table, self.margin)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}"


def triplet_terms(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    margin: float = 0.2,
) -> TripletTerms:
    """Mean hinge of matching pairs against their hardest negatives, in both directions (Faghri et al., eq. 6).

    The image to text term is the mean over all matching pairs (i, j) of the batch of
    max(0, margin - cos(x_i, z_j) + max_k cos(x_i, z_k)) over the texts k that don't match image i; the other direction
    takes the images that don't match text j. The paper sums over the pairs: its loss is this one times their number.

    image_embeddings [n, d], text_embeddings [m, d], image_labels [n], text_labels [m], errors: as in `cmpm_terms`.

    What has no negative in the batch adds 0 to its direction.
    """
    images, texts, matches = matching_inputs(image_embeddings, text_embeddings, image_labels, text_labels)
    with torch.autocast(images.device.type, enabled=False):
        cosines = unit_vectors(images) @ unit_vectors(texts).T
        negatives = cosines.masked_fill(matches, -torch.inf)
        return TripletTerms(
            image_to_text=_mean_hinge(margin - cosines + negatives.amax(dim=1, keepdim=True), matches),
            text_to_image=_mean_hinge(margin - cosines + negatives.amax(dim=0, keepdim=True), matches),
        )


def _mean_hinge(violations: Tensor, matches: Tensor) -> Tensor:
    return violations.clamp(min=0).masked_fill(~matches, 0).sum() / matches.sum()
