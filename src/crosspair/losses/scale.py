"""A learned factor of the similarities: the inverse of a temperature."""

import math

import torch
from torch import Tensor, nn


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
