"""SigLIP's sigmoid loss: a binary classification, match or not, of every image-text pair of the batch."""

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.losses.base import LearnedScale, MatchingLoss, matching_inputs, unit_vectors
from crosspair.registry import register_loss
from crosspair.settings import Range


class SigLIPTerms(NamedTuple):
    """The loss of matching pairs and that of other pairs, scalars in nats."""

    positive: Tensor
    negative: Tensor


@register_loss("siglip")
class SigLIPLoss(MatchingLoss):
    """Sigmoid loss (Zhai et al., SigLIP, ICCV 2023, eq. 1 and algorithm 1): the sum of `siglip_terms`.

    temperature is the inverse of exp(t') in the paper.
    """

    def __init__(
        self,
        temperature: Annotated[float, Range(above=0), "At the start; learned."] = 0.1,
        bias: Annotated[float, Range(), "At the start; learned."] = -10.0,
    ) -> None:
        super().__init__()
        self.scale = LearnedScale(1 / temperature)
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def terms(
        self, image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None = None
    ) -> SigLIPTerms:
        table = (image_embeddings, text_embeddings, image_labels, text_labels)
        return siglip_terms(*table, self.scale(), self.bias)

    def learned(self) -> dict[str, Tensor]:
        return {"scale": self.scale(), "bias": self.bias}


def siglip_terms(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    scale: Tensor | float = 10.0,
    bias: Tensor | float = -10.0,
) -> SigLIPTerms:
    """-1/n sum_ij log sigmoid(y_ij (scale * cos(x_i, z_j) + bias)), y_ij = 1 for a match and -1 otherwise.

    (Zhai et al., ICCV 2023, eq. 1.) The sum is over all pairs of the batch, n is the number of images.

    image_embeddings [n, d], text_embeddings [m, d], image_labels [n], text_labels [m], errors: as in `cmpm_terms`.
    scale, above 0, and bias: numbers or scalar tensors.
    """
    images, texts, matches = matching_inputs(image_embeddings, text_embeddings, image_labels, text_labels)
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * (unit_vectors(images) @ unit_vectors(texts).T) + bias
        losses = -F.logsigmoid(torch.where(matches, logits, -logits)) / len(images)
        return SigLIPTerms(positive=losses.where(matches, 0).sum(), negative=losses.where(~matches, 0).sum())
