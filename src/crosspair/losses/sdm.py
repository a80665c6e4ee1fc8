"""Similarity distribution matching: the distribution of cosines against the distribution of matches."""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from crosspair.losses.base import MatchingLoss, check_embeddings, computing_dtype, unit_vectors
from crosspair.losses.cmpm import cmpm_terms
from crosspair.registry import register_loss
from crosspair.settings import Range


class SDMTerms(NamedTuple):
    """The two directions of the matching loss, scalars in nats."""

    image_to_text: Tensor
    text_to_image: Tensor


@register_loss("sdm")
class SDMLoss(MatchingLoss):
    """Similarity distribution matching (Jiang and Ye, IRRA, CVPR 2023, eq. 4-6): the sum of `sdm_terms`."""

    def __init__(
        self,
        temperature: Annotated[float, Range(above=0), "What cosines are divided by."] = 0.02,
        epsilon: Annotated[float, Range(above=0), "Added to q; bounds the loss of a pair that does not match."] = 1e-8,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.epsilon = epsilon

    def terms(
        self, image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None = None
    ) -> SDMTerms:
        table = (image_embeddings, text_embeddings, image_labels, text_labels)
        return sdm_terms(*table, self.temperature, self.epsilon)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}, epsilon={self.epsilon:g}"


def sdm_terms(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    temperature: Tensor | float = 0.02,
    epsilon: float = 1e-8,
) -> SDMTerms:
    """KL(p || q) from images to texts and from texts to images (Jiang and Ye, CVPR 2023, eq. 4-6).

    p_ij = softmax_j(cos(x_i, z_j) / temperature) over all texts j of the batch, q_ij is uniform over the texts matching
    image i, and the image to text term is mean_i sum_j p_ij log(p_ij / (q_ij + epsilon)); the other direction swaps x
    and z. This is CMPM of embeddings that are brought to the length 1 / temperature first, and is computed so.

    image_embeddings [n, d], text_embeddings [m, d], image_labels [n], text_labels [m], errors: as in `cmpm_terms`.
    temperature, above 0: a number or a scalar tensor.
    """
    check_embeddings(image_embeddings, text_embeddings)
    dtype = computing_dtype(image_embeddings, text_embeddings)
    with torch.autocast(image_embeddings.device.type, enabled=False):
        images = unit_vectors(image_embeddings.to(dtype)) / temperature
        texts = unit_vectors(text_embeddings.to(dtype)) / temperature
    return SDMTerms(*cmpm_terms(images, texts, image_labels, text_labels, epsilon))
