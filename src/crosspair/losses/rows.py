"""Cross-modal projection matching of some rows of a batch: what one of several processes computes of the loss."""

import torch
from torch import Tensor

from crosspair.losses.cmpm import CMPMTerms, _matching_divergence
from crosspair.losses.inputs import (
    check_embeddings,
    check_every_row_matches,
    check_labels,
    computing_dtype,
    unit_vectors,
)


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
    """What images `image_rows` and texts `text_rows` add to `cmpm_terms` of the whole batch.

    The shares of slices that together hold every row once sum to `cmpm_terms`, and so do their gradients. A share costs
    the rows' part of the two products, [own images, m] and [own texts, n].

    Slices have a start and a stop; the other arguments and errors are those of `cmpm_terms`, over the whole batch.
    """
    check_embeddings(image_embeddings, text_embeddings)
    image_labels = check_labels(image_labels, len(image_embeddings), "image_labels")
    text_labels = check_labels(text_labels, len(text_embeddings), "text_labels")
    check_every_row_matches(image_labels, text_labels, "image", "text")
    check_every_row_matches(text_labels, image_labels, "text", "image")
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
