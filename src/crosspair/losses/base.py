"""Base of the losses: the sum of their terms, checks of their inputs, L2 normalisation, a learned scale."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SQUARED_LENGTH_FLOOR = 1e-12


def total_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of a loss's terms, at least one."""
    first, *others = terms
    return sum(others, start=first)


class MatchingLoss(nn.Module):
    """A loss over all image-text pairs of a batch: the sum of its terms, which subclasses compute.

    The parameters of __init__ are its settings in a recipe. Of several processes each computes the loss of the whole
    batch, unless there is `row_terms`: then it computes what its own rows add.
    """

    def terms(
        self, image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None = None
    ) -> Any:
        """A named tuple of scalars."""
        raise NotImplementedError

    def forward(
        self, image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None = None
    ) -> Tensor:
        """The sum of `terms`, a scalar; arguments and errors are those of the function that computes them."""
        terms = self.terms(image_embeddings, text_embeddings, image_labels, text_labels)
        return total_of(terms)

    def learned(self) -> dict[str, Tensor]:
        """Scalars to log beside the loss, by name."""
        return {}


def unit_vectors(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors scaled to length 1 along `dim`; those shorter than 1e-6 are multiplied by 1e6 instead.

    The floor is on the squared norm, as in TensorFlow's l2_normalize: a zero vector stays zero with a finite gradient.
    torch.nn.functional.normalize bounds the norm itself and differs below that length.
    """
    squared_norm = vectors.square().sum(dim, keepdim=True)
    return vectors * squared_norm.clamp(min=SQUARED_LENGTH_FLOOR).rsqrt()


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest type of `tensors`, and float32 at least: a softmax over a batch needs more than bfloat16 holds."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_embeddings(image_embeddings: Tensor, text_embeddings: Tensor) -> None:
    """Raise ValueError unless both are non-empty floating point matrices [n, d] and [m, d] of one d."""
    for name, embeddings in (("image_embeddings", image_embeddings), ("text_embeddings", text_embeddings)):
        if embeddings.ndim != 2 or not embeddings.is_floating_point() or len(embeddings) == 0:
            raise ValueError(
                f"{name} are {embeddings.dtype} of shape {tuple(embeddings.shape)}; "
                "expected at least one row of floating point numbers, [rows, dimension]"
            )
    if image_embeddings.shape[1] != text_embeddings.shape[1]:
        raise ValueError(
            f"image_embeddings have dimension {image_embeddings.shape[1]} and text_embeddings "
            f"{text_embeddings.shape[1]}; expected the same"
        )


def check_labels(labels: Tensor, rows: int, name: str) -> Tensor:
    """Labels as int64 [rows]. Raise ValueError for another shape, and for types that merge labels or hold none."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} are {labels.dtype}; expected integers, as only these compare exactly (try .long())")
    if labels.shape != (rows,):
        raise ValueError(f"{name} have shape {tuple(labels.shape)}; expected one label for each of the {rows} rows")
    return labels.long()


def check_every_row_matches(labels: Tensor, other_labels: Tensor, name: str, other_name: str) -> None:
    """Raise ValueError, naming the row, when a label is not among the other labels.

    Does nothing under torch.compile, where looking at values would break the graph.
    """
    if torch.compiler.is_compiling():
        return
    matched = torch.isin(labels, other_labels)
    if not bool(matched.all()):
        row = int(matched.logical_not().nonzero()[0])
        raise ValueError(
            f"{name} row {row} (label {int(labels[row])}) matches no {other_name}; "
            f"expected at least one {other_name} of that label in the batch"
        )


class MatchingInputs(NamedTuple):
    """Embeddings in the type to compute in, and which image matches which text."""

    images: Tensor  # [n, d]
    texts: Tensor  # [m, d]
    matches: Tensor  # bool [n, m]


def checked_labels(
    image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Labels of both sides as int64, where they are; text_labels default to image_labels. Errors: `matching_inputs`."""
    check_embeddings(image_embeddings, text_embeddings)
    image_labels = check_labels(image_labels, len(image_embeddings), "image_labels")
    if text_labels is None:
        return image_labels, check_labels(image_labels, len(text_embeddings), "text_labels (taken from image_labels)")
    text_labels = check_labels(text_labels, len(text_embeddings), "text_labels")
    check_every_row_matches(image_labels, text_labels, "image", "text")
    check_every_row_matches(text_labels, image_labels, "text", "image")
    return image_labels, text_labels


def matching_inputs(
    image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor | None
) -> MatchingInputs:
    """The checked inputs of a loss over all image-text pairs of a batch; text_labels default to image_labels.

    Raises ValueError for wrong shapes or label types, and when a row has no match, naming it. With text_labels on a
    GPU this check waits for the device.
    """
    image_labels, text_labels = checked_labels(image_embeddings, text_embeddings, image_labels, text_labels)
    device = image_embeddings.device
    matches = image_labels.to(device, non_blocking=True)[:, None] == text_labels.to(device, non_blocking=True)
    dtype = computing_dtype(image_embeddings, text_embeddings)
    return MatchingInputs(image_embeddings.to(dtype), text_embeddings.to(dtype), matches)


class LearnedScale(nn.Module):
    """A positive number, learned as its logarithm (Radford et al., CLIP, ICML 2021, section 2.5).

    start: the number at first. largest: what it is held to; the parameter itself is brought back to this bound before
    each use, so that it can fall again. learned: whether the number changes at all.
    """

    def __init__(self, start: float, *, largest: float = math.inf, learned: bool = True) -> None:
        super().__init__()
        if not 0 < start <= largest:
            raise ValueError(f"a scale starts at {start:g}; expected above 0 and at most {largest:g}")
        self.largest = largest
        self.logarithm = nn.Parameter(torch.tensor(math.log(start)), requires_grad=learned)

    def forward(self) -> Tensor:
        with torch.no_grad():
            self.logarithm.clamp_(max=math.log(self.largest))
        return self.logarithm.exp()

    def extra_repr(self) -> str:
        return f"largest={self.largest:g}, learned={self.logarithm.requires_grad}"
