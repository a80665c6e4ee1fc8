"""Gathering and summing over all processes with gradients, as every process's loss counts for every process's rows."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather(own: Tensor) -> Tensor:
    """A tensor [...] of one shape in all processes -> [processes, ...], the same in all of them."""
    gathered: Tensor = _Gather.apply(own)
    return gathered


def total(own: Tensor) -> Tensor:
    """The sum over the processes of a tensor of one shape in all of them."""
    summed: Tensor = _Total.apply(own)
    return summed


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        gathered = own.new_empty(dist.get_world_size(), *own.shape)
        dist.all_gather(list(gathered), own.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """What all processes' losses ask of this process's rows."""
        own = torch.empty_like(gradient[0])
        dist.reduce_scatter(own, list(gradient.contiguous()))
        return own


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        summed = own.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed
