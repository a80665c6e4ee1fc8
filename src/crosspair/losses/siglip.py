"""The sigmoid loss of SigLIP: every image-text pair of the batch is a yes-or-no question of its own."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.losses.inputs import matching_inputs, unit_vectors
from crosspair.losses.scale import LearnedScale


class SigLIPTerms(NamedTuple):
    """What matching pairs and what other pairs add to the loss, scalars in nats."""

    positive: Tensor
    negative: Tensor


class SigLIPLoss(nn.Module):
    """Sigmoid loss (Zhai et al., ICCV 2023, eq. 1 and algorithm 1): the sum of `siglip_terms`.

    temperature, bias: where the learned temperature (the inverse of exp(t') in the paper) and bias start.
    """

    def __init__(self, temperature: float = 0.1, bias: float = -10.0) -> None:
        super().__init__()
        self.scale = LearnedScale(1 / temperature)
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        image_labels: Tensor,
        text_labels: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss in nats; arguments and errors as in `siglip_terms`."""
        terms = siglip_terms(image_embeddings, text_embeddings, image_labels, text_labels, self.scale(), self.bias)
        return terms.positive + terms.negative


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
