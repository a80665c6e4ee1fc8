"""Distributed training: a process per device, started by Fabric, torchrun or Slurm, each with its part of every batch.

The loss is the one of the whole batch. Every process computes a share of it, the shares add up to the loss, and
gradients flow back through the gather, so that weights move as they would in one process that held everything.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from crosspair.data.batching import Batch
from crosspair.errors import UserError
from crosspair.training.recipe import Recipe

T = TypeVar("T")

# The first process validates while the others wait in a collective.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Gathered:
    """The embeddings and labels of all processes, in their order, and which rows are this process's own."""

    image_embeddings: Tensor  # [n, d]; gradients flow back to the process that a row came from
    text_embeddings: Tensor  # [m, d]
    image_labels: Tensor  # int64 [n], on the CPU
    text_labels: Tensor  # int64 [m], on the CPU
    image_rows: slice
    text_rows: slice
    processes: int

    @property
    def table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings and labels as losses take them."""
        return self.image_embeddings, self.text_embeddings, self.image_labels, self.text_labels

    def head(self, head: int, heads: int) -> "Gathered":
        """The part of the embeddings that one of several heads made."""
        images, texts = (value.chunk(heads, dim=1)[head] for value in (self.image_embeddings, self.text_embeddings))
        return replace(self, image_embeddings=images, text_embeddings=texts)

    @property
    def share_of_texts(self) -> float:
        """This process's captions as a share of all, 0..1; they are also its pairs."""
        own: int = self.text_rows.stop - self.text_rows.start
        return own / len(self.text_labels)


def counted_processes(recipe: Recipe) -> Recipe:
    """The recipe with the devices and nodes that torchrun started, where it did."""
    if not dist.is_torchelastic_launched():
        return recipe
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return replace(recipe, devices=devices, nodes=int(os.environ["WORLD_SIZE"]) // devices)


def is_first_process() -> bool:
    """Whether this process is the first one by its launcher's numbers; it alone writes and prints."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


class Processes:
    """All processes of a run, as one of them sees them. With one process nothing is sent and nothing is changed."""

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric
        self.size: int = self.fabric.world_size
        self.rank: int = self.fabric.global_rank
        self.first = self.rank == 0
        # Small facts travel between CPUs: asking a GPU for them would wait for its work.
        self._facts: Any = dist.new_group(backend="gloo") if self.size > 1 else None

    def seed(self, seed: int) -> None:
        """Seed each process differently, now that all have the same weights; the first one's random numbers go on."""
        if not self.first:
            torch.manual_seed(int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]))

    def check_batch(self, num_images: int, stage: str) -> None:
        """Raise UserError where a batch is too small to be shared: batch norm needs two of each kind in a process."""
        if self.size > 1 and num_images < 2 * self.size:
            raise UserError(
                f"{stage} has {num_images} pictures in a batch for {self.size} processes; expected at least 2 for "
                f"each, raise {stage}.batch_size or start fewer processes"
            )

    def once(self, act: Callable[[], T]) -> T:
        """Do something in the first process only, and give all of them what came of it. Where it fails, all stop."""
        if self.size == 1:
            return act()
        outcome: tuple[T | None, str | None, bool] = (None, None, False)
        caught: Exception | None = None
        if self.first:
            try:
                outcome = (act(), None, False)
            except Exception as error:
                caught = error
                outcome = (None, str(error) or type(error).__name__, isinstance(error, UserError))
        value, failure, of_user = self.fabric.broadcast(outcome)
        if caught is not None:
            raise caught
        if failure is not None:
            raise UserError(failure) if of_user else RuntimeError(f"the first process stopped: {failure}")
        return value  # type: ignore[no-any-return]

    def agree(self, *numbers: int) -> list[int]:
        """The largest of what the processes found, number by number."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._facts)
        return found.tolist()

    def gather(self, image_embeddings: Tensor, text_embeddings: Tensor, batch: Batch) -> Gathered:
        """Embeddings and labels of all processes; their numbers of images and captions may differ."""
        if self.size == 1:
            rows = slice(0, len(image_embeddings)), slice(0, len(text_embeddings))
            return Gathered(image_embeddings, text_embeddings, batch.image_labels, batch.text_labels, *rows, 1)
        counts = self._gather_facts(torch.tensor([len(image_embeddings), len(text_embeddings)]))
        most = max(int(count.sum()) for count in counts)
        own = torch.cat([image_embeddings, text_embeddings])
        # One collective for both, so that the backward pass is one as well and all processes take it in one order.
        gathered = gather_rows(F.pad(own, (0, 0, 0, most - len(own))))
        labels = torch.cat([batch.image_labels.cpu(), batch.text_labels.cpu()])
        all_labels = self._gather_facts(F.pad(labels, (0, most - len(labels))))
        num_images, captions = ([int(count[kind]) for count in counts] for kind in (0, 1))
        images = [slice(0, n) for n in num_images]
        texts = [slice(n, n + m) for n, m in zip(num_images, captions, strict=True)]
        return Gathered(
            _pick(gathered, images),
            _pick(gathered, texts),
            _pick(all_labels, images),
            _pick(all_labels, texts),
            _own_rows(num_images, self.rank),
            _own_rows(captions, self.rank),
            self.size,
        )

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the processes of scalars that each holds a share of."""
        if self.size == 1:
            return values
        total = self.fabric.all_reduce(torch.stack([value.detach() for value in values.values()]), reduce_op="sum")
        return dict(zip(values, total.unbind(), strict=True))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of parameters outside of the model; those inside are averaged in the backward pass."""
        if self.size > 1:
            for value in parameters:
                if value.grad is not None:
                    value.grad = self.fabric.all_reduce(value.grad, reduce_op="mean")

    @torch.no_grad()
    def average_statistics(self, model: nn.Module) -> None:
        """Average the running statistics of batch norm over all processes."""
        if self.size == 1:
            return
        moving = [
            value
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.training
            for value in (module.running_mean, module.running_var)
            if value is not None
        ]
        if moving:
            mean = self.fabric.all_reduce(torch.cat([value.flatten() for value in moving]), reduce_op="mean")
            torch._foreach_copy_(moving, list(mean.split([value.numel() for value in moving])))

    def random_states(self) -> dict[str, Tensor]:
        """The state of every process's random numbers, by process; those of the first have plain names."""
        states = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        if self.size == 1:
            return states
        return {
            _state_name(name, process): state
            for name, own in states.items()
            for process, state in enumerate(self._gather_facts(own))
        }

    def set_random_states(self, states: dict[str, Tensor]) -> None:
        """Restore states as `random_states` gave them."""
        torch.set_rng_state(states[_state_name("cpu", self.rank)])
        if self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(states[_state_name("cuda", self.rank)], self.fabric.device)

    def leave(self) -> None:
        """End the group of processes."""
        if self.size > 1:
            dist.destroy_process_group()

    def _gather_facts(self, own: Tensor) -> list[Tensor]:
        """A CPU tensor of one shape in all processes, from each of them."""
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self._facts)
        return found


def _pick(by_process: Iterable[Tensor], rows: list[slice]) -> Tensor:
    return torch.cat([values[part] for values, part in zip(by_process, rows, strict=True)])


def _own_rows(counts: list[int], rank: int) -> slice:
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def _state_name(name: str, process: int) -> str:
    return name if process == 0 else f"{name} of process {process}"


def launch(recipe: Recipe) -> Processes:
    """Start the recipe's processes, or join those that torchrun or Slurm started.

    Raises UserError for a device that is not there.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # its notices repeat the recipe
    # Weights in double precision need no conversions; Fabric's own "64-true" would return float32 embeddings.
    precision: Any = "32-true" if recipe.precision == "64-true" else recipe.precision
    several = recipe.devices * recipe.nodes > 1
    accelerator, _, number = recipe.device.partition(":")
    if number and several:
        raise UserError(
            f"device {recipe.device} is one device, for {recipe.devices * recipe.nodes} processes; name {accelerator}"
        )
    strategy = DDPStrategy(
        timeout=PATIENCE,
        broadcast_buffers=False,  # averaged after each step instead, so that weight averages are the same everywhere
        gradient_as_bucket_view=True,
    )
    try:
        fabric = Fabric(
            accelerator=accelerator,
            strategy=strategy if several else "auto",
            devices=[int(number)] if number else recipe.devices,
            num_nodes=recipe.nodes,
            precision=precision,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"device '{recipe.device}' can't be used ({reason}); expected auto, cpu, cuda or mps, and for devices "
            f"({recipe.devices}) as many as a node has"
        ) from error
    fabric.launch()
    return Processes(fabric)


def gather_rows(own: Tensor) -> Tensor:
    """A tensor [...] of one shape in all processes -> [processes, ...], the same in all of them."""
    gathered: Tensor = _Gather.apply(own)
    return gathered


def sum_over_processes(own: Tensor) -> Tensor:
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
        """The gradient of all processes' losses with respect to this process's rows."""
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


def synchronise_batch_norm(model: nn.Module) -> None:
    """Make every batch norm of a model see the rows of all processes. Names and values of its tensors stay."""
    for name, child in model.named_children():
        if not isinstance(child, _BatchNorm):
            synchronise_batch_norm(child)
        elif child.weight.is_cuda:
            model.add_module(name, convert_sync_batchnorm(child).train(child.training))
        else:
            child.__class__ = _SynchronisedBatchNorm


class _SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over all processes on any device; PyTorch's own is for GPUs only."""

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
        sums = sum_over_processes(torch.cat([values.sum(axes), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        with torch.no_grad():
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scaled = centred * ((variance + self.eps).rsqrt() * self.weight).view(shape) + self.bias.view(shape)
        return scaled.to(rows.dtype)
