"""Cross-modal projection classification: each modality, projected onto the other, must show the identity."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crosspair.losses.class_entropy import class_entropies
from crosspair.losses.inputs import check_embeddings, check_labels, computing_dtype, unit_vectors


class CMPCTerms(NamedTuple):
    """The two directions of the classification loss, scalars in nats."""

    image_to_text: Tensor
    text_to_image: Tensor


class CMPCLoss(nn.Module):
    """Cross-modal projection classification loss (Zhang and Lu, ECCV 2018, eq. 7-11): the sum of `cmpc_terms`.

    num_classes: number of identities; labels are 0 .. num_classes - 1.
    label_smoothing: share of the target spread evenly over all classes, 0..1.
    sampled_classes: see `cmpc_terms`; in evaluation mode all classes are taken.
    `weight` [embedding_dim, num_classes] is the classifier that both directions share.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, label_smoothing: float = 0.0, *, sampled_classes: int = 0
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.sampled_classes = sampled_classes
        self.weight = nn.Parameter(torch.empty(embedding_dim, num_classes))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss in nats; arguments and errors as in `cmpc_terms`."""
        sampled_classes = self.sampled_classes if self.training else 0
        terms = cmpc_terms(
            image_embeddings,
            text_embeddings,
            labels,
            self.weight,
            self.label_smoothing,
            sampled_classes=sampled_classes,
        )
        return terms.image_to_text + terms.text_to_image

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
    device = image_embeddings.device
    labels = labels.to(device, non_blocking=True)
    dtype = computing_dtype(image_embeddings, text_embeddings, weight)
    images, texts = image_embeddings.to(dtype), text_embeddings.to(dtype)
    with torch.autocast(device.type, enabled=False):
        # Both directions in one product: at many classes it is reading the weights that takes the time.
        projected = torch.cat((_project(images, texts), _project(texts, images)))
        weight, log_counts = weight.to(dtype), None
        if 0 < sampled_classes < weight.shape[1]:
            classes, labels, log_counts = _sample_classes(labels, sampled_classes, weight)
            weight = weight.index_select(1, classes)
        entropies = class_entropies(projected, labels.repeat(2), weight, label_smoothing, log_counts)
        return CMPCTerms(*entropies.view(2, -1).mean(dim=1).unbind())


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
