"""Batch norm over the batches of all processes, on any device."""

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crosspair.training.collectives import total


def synchronise_batch_norm(model: nn.Module) -> None:
    """Make every batch norm of a model see the rows of all processes. Names and values of its tensors stay."""
    for name, child in model.named_children():
        if not isinstance(child, _BatchNorm):
            synchronise_batch_norm(child)
        elif child.weight.is_cuda:
            model.add_module(name, convert_sync_batchnorm(child).train(child.training))
        else:
            child.__class__ = _Synchronised


class _Synchronised(_BatchNorm):
    """What PyTorch's own does on GPUs only."""

    def _check_input_dim(self, rows: Tensor) -> None:
        """Any number of dimensions; the second one counts the channels."""

    def forward(self, rows: Tensor) -> Tensor:
        result = self._normalized(rows) if self.training else super().forward(rows)
        for name in ("drop", "act"):  # what timm joins to a batch norm
            result = getattr(self, name, nn.Identity())(result)
        return result

    def _normalized(self, rows: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        values = rows.to(self.weight.dtype)
        axes = [axis for axis in range(rows.ndim) if axis != 1]
        shape = [1, -1, *[1] * (rows.ndim - 2)]
        count = torch.tensor([rows.numel() / rows.shape[1]], dtype=values.dtype)
        sums = total(torch.cat([values.sum(axes), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean.view(shape)
        variance = total(centred.square().sum(axes)) / count
        with torch.no_grad():
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scaled = centred * ((variance + self.eps).rsqrt() * self.weight).view(shape) + self.bias.view(shape)
        return scaled.to(rows.dtype)
