"""InfoNCE: softmax cross entropy of each image over the texts of the batch, and of each text over the images."""

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crosspair.losses.base import LearnedScale, MatchingLoss, matching_inputs, unit_vectors
from crosspair.registry import register_loss
from crosspair.settings import Range


class InfoNCETerms(NamedTuple):
    """The two directions of the contrastive loss, scalars in nats."""

    image_to_text: Tensor
    text_to_image: Tensor


@register_loss("infonce")
class InfoNCELoss(MatchingLoss):
    """InfoNCE as CLIP has it (Radford et al., ICML 2021, figure 3): the sum of `infonce_terms`, which CLIP halves."""

    def __init__(
        self,
        temperature: Annotated[float, Range(at_least=0.01), "At the start, if it is learned; held above 0.01."] = 0.07,
        *,
        learned: Annotated[bool, "Learn the temperature."] = True,
    ) -> None:
        super().__init__()
        self.scale = LearnedScale(1 / temperature, largest=100.0, learned=learned)

    def terms(
        self, image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None = None
    ) -> InfoNCETerms:
        table = (image_embeddings, text_embeddings, image_labels, text_labels)
        return infonce_terms(*table, self.scale())

    def learned(self) -> dict[str, Tensor]:
        return {"scale": self.scale()}


def infonce_terms(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    scale: Tensor | float = 1 / 0.07,
) -> InfoNCETerms:
    """Cross entropy of a softmax over cosines against the matches, in both directions.

    p_ij = softmax_j(scale * cos(x_i, z_j)) over all texts j of the batch; the image to text term is
    -mean_i mean_j log p_ij over the images i and the texts j that match i (targets uniform over the matches, L_out of
    Khosla et al., NeurIPS 2020); the other direction swaps x and z. With one match each these are CLIP's terms.

    image_embeddings [n, d], text_embeddings [m, d], image_labels [n], text_labels [m], errors: as in `cmpm_terms`.
    scale, above 0: the inverse of the temperature, a number or a scalar tensor.
    """
    images, texts, matches = matching_inputs(image_embeddings, text_embeddings, image_labels, text_labels)
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * (unit_vectors(images) @ unit_vectors(texts).T)
        return InfoNCETerms(_cross_entropy(logits, matches), _cross_entropy(logits.T, matches.T))


def _cross_entropy(logits: Tensor, matches: Tensor) -> Tensor:
    targets = matches.to(logits.dtype)
    return F.cross_entropy(logits, targets / targets.sum(dim=1, keepdim=True))
