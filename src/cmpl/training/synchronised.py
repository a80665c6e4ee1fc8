"""Batch norm over the batches of all processes, on any device."""

import torch
import torch.distributed.nn.functional
from timm.layers.norm_act import SyncBatchNormAct, convert_sync_batchnorm
from torch import Tensor, nn


def synchronise_batch_norm(model: nn.Module) -> None:
    """Make every batch norm of a model see the rows of all processes. Names and values of its tensors stay."""
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            synchronised = convert_sync_batchnorm(child)
            if not child.weight.is_cuda:
                synchronised.__class__ = _OnCPU
            model.add_module(name, synchronised.train(child.training))
        else:
            synchronise_batch_norm(child)


class _OnCPU(SyncBatchNormAct):
    """The same without a GPU, which PyTorch's own asks for in training."""

    def forward(self, rows: Tensor) -> Tensor:
        if not self.training:
            return super().forward(rows)
        assert self.running_mean is not None
        assert self.running_var is not None
        values = rows.to(self.weight.dtype)
        axes = [axis for axis in range(rows.ndim) if axis != 1]
        count = torch.tensor([rows.numel() / rows.shape[1]], dtype=values.dtype)
        sums = _sum(torch.cat([values.sum(axes), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        shape = [1, -1, *[1] * (rows.ndim - 2)]
        centred = values - mean.view(shape)
        variance = _sum(centred.square().sum(axes)) / count
        with torch.no_grad():
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scaled = centred * ((variance + self.eps).rsqrt() * self.weight).view(shape) + self.bias.view(shape)
        result = scaled.to(rows.dtype)
        for name in ("drop", "act"):  # what timm joins to a batch norm
            result = getattr(self, name, nn.Identity())(result)
        return result


def _sum(own: Tensor) -> Tensor:
    """Over the processes, with gradients."""
    total: Tensor = torch.distributed.nn.functional.all_reduce(own)  # type: ignore[no-untyped-call]
    return total
