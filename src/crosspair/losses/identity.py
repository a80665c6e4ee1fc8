"""Identity loss: a linear classifier of labels that images and texts share, the instance loss of person search."""

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.losses.base import computing_dtype, total_of
from crosspair.losses.cmpc import checked_pairs
from crosspair.registry import register_loss
from crosspair.settings import Range


class IdentityTerms(NamedTuple):
    """Half the cross entropy of images and half that of texts, scalars in nats."""

    image: Tensor
    text: Tensor


@register_loss("identity")
class IdentityLoss(nn.Module):
    """Cross entropy of one linear classifier on images and on texts, their mean (Zheng et al., 2017; IRRA's L_id).

    Unlike CMPC it has a bias and weights of any length, and sees each side's embedding as it is.
    num_classes: number of labels, which are 0 .. num_classes - 1.
    `weight` [embedding_dim, num_classes] starts normal with a deviation of 0.001, `bias` [num_classes] at 0, as IRRA's.
    """

    takes_pairs = True  # called with pairs and their labels; of several processes each with its own pairs

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        label_smoothing: Annotated[float, Range(at_least=0, at_most=1), "Of the targets."] = 0.0,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weight = nn.Parameter(torch.empty(embedding_dim, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.normal_(self.weight, std=0.001)

    def terms(self, image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor) -> IdentityTerms:
        """Both halves. image_embeddings, text_embeddings [p, d], row i of both one pair; labels [p].

        Errors are those of `cmpc_terms`. Half types are computed in float32, inside autocast too.
        """
        labels = checked_pairs(image_embeddings, text_embeddings, labels, self.weight)
        return IdentityTerms(
            *(
                F.cross_entropy(self._logits(each), labels, label_smoothing=self.label_smoothing) / 2
                for each in (image_embeddings, text_embeddings)
            )
        )

    @torch.no_grad()
    def observed(self, image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Per cent of the pairs whose label has the largest logit, by image and by text."""
        labels = checked_pairs(image_embeddings, text_embeddings, labels, self.weight)
        found = [
            100 * (self._logits(each).argmax(1) == labels).float().mean()
            for each in (image_embeddings, text_embeddings)
        ]
        return {"image_precision": found[0], "text_precision": found[1]}

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss in nats, the sum of `terms`."""
        return total_of(self.terms(image_embeddings, text_embeddings, labels))

    def extra_repr(self) -> str:
        embedding_dim, num_classes = self.weight.shape
        return f"num_classes={num_classes}, embedding_dim={embedding_dim}, label_smoothing={self.label_smoothing:g}"

    def _logits(self, embeddings: Tensor) -> Tensor:
        dtype = computing_dtype(embeddings, self.weight)
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings.to(dtype) @ self.weight.to(dtype) + self.bias.to(dtype)
