"""Exponential moving averages (EMA) of weights and batch-norm statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightEMA:
    """The average of each value that trains or moves in a model: average += (1 - decay) * (value - average).

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that early averages follow closely.
    leave_out: prefixes of names that are left out of the EMA. Weights that don't train are as well: they are their own
    average.
    """

    def __init__(self, model: nn.Module, decay: float, leave_out: tuple[str, ...] = ()) -> None:
        self.decay = decay
        moving: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
        moving |= {name: value for name, value in model.named_buffers() if value.is_floating_point()}
        self._values = {name: value for name, value in moving.items() if not name.startswith(leave_out or ("\0",))}
        self.averages = {name: value.detach().clone() for name, value in self._values.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the model's present values. step: how many updates came before this one."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averages.values()), list(self._values.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model holds the EMA of its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, averages: dict[str, Tensor]) -> None:
        """Restore averages as `self.averages` gave them."""
        for name, average in self.averages.items():
            average.copy_(averages[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._values.items():
            present = value.detach().clone()
            value.copy_(self.averages[name])
            self.averages[name].copy_(present)
