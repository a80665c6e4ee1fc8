"""Exponential moving averages of weights and batch-norm statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightEMA:
    """Shadows of what trains or moves in a model: shadow += (1 - decay) * (value - shadow).

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that early averages follow closely.
    leave_out: prefixes of names that get no shadow. Weights that don't train need none: they are their own average.
    """

    def __init__(self, model: nn.Module, decay: float, leave_out: tuple[str, ...] = ()) -> None:
        self.decay = decay
        moving: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
        moving |= {name: value for name, value in model.named_buffers() if value.is_floating_point()}
        self._values = {name: value for name, value in moving.items() if not name.startswith(leave_out or ("\0",))}
        self.shadows = {name: value.detach().clone() for name, value in self._values.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the shadows towards the model's present values. step: how many updates came before this one."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadows.values()), list(self._values.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model holds the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, shadows: dict[str, Tensor]) -> None:
        """Take shadows as `self.shadows` gave them."""
        for name, shadow in self.shadows.items():
            shadow.copy_(shadows[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._values.items():
            present = value.detach().clone()
            value.copy_(self.shadows[name])
            self.shadows[name].copy_(present)
