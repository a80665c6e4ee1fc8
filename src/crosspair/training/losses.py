"""The weighted sum of a recipe's losses, found by their names, with the parameters that they learn.

A registered loss is a function or an nn.Module of (image_embeddings [n, d], text_embeddings [m, d], image_labels [n],
text_labels [m]) that returns a scalar or a named tuple of scalars, its terms. A module may have

    terms(...)               in place of forward, for the terms of what forward sums up
    row_terms(..., image_rows, text_rows)
                             what some rows of a whole batch add to the terms, for several processes to share the work
    takes_pairs = True       called with pairs instead: image_embeddings [p, d], text_embeddings [p, d], labels [p]
    learned()                scalars to log by name
    observed(...)            scalars of a batch to log by name, called without gradients in the steps that are logged
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crosspair.data.batching import Batch
from crosspair.errors import UserError
from crosspair.losses import MatchingLoss
from crosspair.losses.base import total_of
from crosspair.registry import LOSSES
from crosspair.settings import apply_settings, asks_for
from crosspair.training.distributed import Gathered
from crosspair.training.recipe import map_losses


class MatchingLosses(nn.Module):
    """The weighted sum of a recipe's losses; `losses["cmpc"]` is one of them.

    config: weight, or weight and settings, by name, as a recipe has them. num_classes: of the training labels.
    heads: parts of the embeddings, of equal width, that are matched each by itself. They share a loss with all that it
    learns, unless it asks for the embedding_dim: then each has its own.

    Raises UserError for an unknown loss, and for settings that it refuses.
    """

    def __init__(self, config: Mapping[str, Any], num_classes: int, embedding_dim: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.weights: dict[str, float] = {}
        for name, (weight, settings) in map_losses(config).items():
            if weight == 0:
                continue
            self.weights[name] = weight
            thing = LOSSES.get(name)
            create = apply_settings(thing, settings, num_classes=num_classes, embedding_dim=embedding_dim // heads)
            number = heads if asks_for(thing, "embedding_dim") else 1
            own = [_create(name, thing, create) for _ in range(number)]
            # A module's own names (half, float, type ...) are taken.
            self.add_module(f"{name}_loss", own[0] if number == 1 else nn.ModuleList(own))

    def __getitem__(self, name: str) -> nn.Module:
        return self.get_submodule(f"{name}_loss")

    def forward(
        self, image_embeddings: Tensor, text_embeddings: Tensor, batch: Batch, gathered: Gathered | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise, and its terms and learned scales by the names they have in metrics.jsonl.

        With several heads the scalar is the sum over them, and a term is their mean.

        gathered: what all processes hold. With several of them everything returned is this process's share: the sum
        over the processes is the value for the whole batch.
        """
        gathered = gathered or _alone(image_embeddings, text_embeddings, batch)
        images, texts = image_embeddings.chunk(self.heads, dim=1), text_embeddings.chunk(self.heads, dim=1)
        found = [
            self._head(head, images[head], texts[head], batch, gathered.head(head, self.heads))
            for head in range(self.heads)
        ]
        total = torch.stack([loss for loss, _ in found]).sum()
        terms = {name: torch.stack([parts[name] for _, parts in found]).mean() for name in found[0][1]}
        return total, terms | {name: value / gathered.processes for name, value in self._learned().items()}

    @torch.no_grad()
    def observed(
        self, image_embeddings: Tensor, text_embeddings: Tensor, batch: Batch, gathered: Gathered | None = None
    ) -> dict[str, Tensor]:
        """What losses tell of a batch without minimising it, by its name in metrics.jsonl; shares as in `forward`."""
        gathered = gathered or _alone(image_embeddings, text_embeddings, batch)
        images, texts = image_embeddings.chunk(self.heads, dim=1), text_embeddings.chunk(self.heads, dim=1)
        found: dict[str, list[Tensor]] = {}
        for name in self.weights:
            for head in range(self.heads):
                loss = self._of_head(name, head)
                if not callable(getattr(loss, "observed", None)):
                    continue
                part = gathered.head(head, self.heads)
                seen, share = _share(loss, images[head], texts[head], batch, part, method="observed")
                for what, value in seen.items():
                    found.setdefault(f"{name}_{what}", []).append(value * share)
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _of_head(self, name: str, head: int) -> Any:
        loss = self[name]
        return loss[head] if isinstance(loss, nn.ModuleList) else loss

    def _head(
        self, head: int, images: Tensor, texts: Tensor, batch: Batch, gathered: Gathered
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum for one head, and its terms."""
        terms: dict[str, Tensor] = {}
        total = images.new_zeros(())
        for name, weight in self.weights.items():
            loss = self._of_head(name, head)
            parts = _terms(name, *_share(loss, images, texts, batch, gathered))
            terms |= {f"{name}_{part}": value for part, value in parts.items() if part}
            terms[name] = total_of(parts.values())
            total = total + weight * terms[name]
        return total, terms

    def _learned(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in self.weights:
            learned = getattr(self[name], "learned", None)
            if callable(learned):
                found |= {f"{name}_{what}": value for what, value in learned().items()}
        return found


class _Function(nn.Module):
    """A loss that is a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *table: Tensor) -> Any:
        return self.function(*table)


def _create(name: str, thing: Any, create: Callable[..., Any]) -> nn.Module:
    if not isinstance(thing, type):
        return _Function(create)
    try:
        loss = create()
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the loss '{name}' can't be made ({reason}); mend its settings, loss.{name}") from error
    if not isinstance(loss, nn.Module):
        raise UserError(f"the loss '{name}' is a {type(loss).__name__}; expected a function or a torch.nn.Module")
    return loss


def _alone(images: Tensor, texts: Tensor, batch: Batch) -> Gathered:
    rows = slice(0, len(images)), slice(0, len(texts))
    return Gathered(images, texts, batch.image_labels, batch.text_labels, *rows, processes=1)


def _share(
    loss: Any, images: Tensor, texts: Tensor, batch: Batch, gathered: Gathered, method: str = "terms"
) -> tuple[Any, float]:
    """What a method of a loss gives for the part that this process computes, and that part's share of the batch."""
    compute = getattr(loss, method, loss)
    if getattr(loss, "takes_pairs", False):
        return compute(images[batch.image_rows], texts, batch.text_labels), gathered.share_of_texts
    if gathered.processes > 1 and hasattr(loss, "row_terms") and method == "terms":
        return loss.row_terms(*gathered.table, gathered.image_rows, gathered.text_rows), 1.0
    image_embeddings, text_embeddings, *labels = gathered.table
    if not isinstance(loss, MatchingLoss):  # others may index with labels, which these leave on the CPU to check them
        labels = [values.to(images.device, non_blocking=True) for values in labels]
    return compute(image_embeddings, text_embeddings, *labels), 1 / gathered.processes


def _terms(name: str, found: Any, share: float) -> dict[str, Tensor]:
    """Terms by name, times the share; a loss without terms is one whose name is empty."""
    parts = found._asdict() if hasattr(found, "_asdict") else {"": found}
    for value in parts.values():
        if not isinstance(value, Tensor) or value.ndim != 0:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise UserError(
                f"the loss '{name}' returns a {type(value).__name__}{shape}; expected a scalar tensor or a named "
                "tuple of them"
            )
    return parts if share == 1 else {part: value * share for part, value in parts.items()}
