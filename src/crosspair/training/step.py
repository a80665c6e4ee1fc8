"""One training step: forward, losses, backward, clipping, update, averages."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crosspair.data.batching import Batch
from crosspair.losses import pair_distances
from crosspair.training.accumulation import EmbeddingsInParts
from crosspair.training.distributed import Processes
from crosspair.training.ema import WeightEMA
from crosspair.training.losses import MatchingLosses
from crosspair.training.optimizer import ScheduledAdam


@dataclass
class TrainingStep:
    """All that one step touches. Call it with a batch and the step's number within the stage, from 0."""

    processes: Processes
    model: Any  # the DualEncoder as Fabric wrapped it
    losses: MatchingLosses
    optimizer: ScheduledAdam
    ema: WeightEMA | None
    average_before: bool = False
    grad_clip_norm: float | None = None
    mini_batch_size: int = 0  # pictures that are encoded at a time; 0 takes the whole batch

    def __call__(self, batch: Batch, step: int, *, observe: bool = False) -> dict[str, Tensor]:
        """Train on a batch. Returns detached scalars on the device, by their names in metrics.jsonl.

        observe: add what is only looked at, namely the distances of pairs and the regularization.
        """
        if self.ema is not None and self.average_before:
            self.ema.update(step)
        self.optimizer.prepare(step)
        in_parts = self._in_parts(batch)
        if in_parts is None:
            image_embeddings, text_embeddings = self.model(
                batch.tokens,
                batch.lengths,
                images=batch.images,
                features=batch.features,
                text_features=batch.text_features,
            )
        else:
            image_embeddings, text_embeddings = in_parts.image_embeddings, in_parts.text_embeddings
        gathered = self.processes.gather(image_embeddings, text_embeddings, batch)
        total, terms = self.losses(image_embeddings, text_embeddings, batch, gathered)
        seen = self.processes.sum({"loss": total.detach(), **{name: value.detach() for name, value in terms.items()}})
        if observe:
            seen["positive_distance"], seen["negative_distance"] = pair_distances(*gathered.table)
            seen["regularization"] = self.optimizer.regularization()
        self.optimizer.adam.zero_grad(set_to_none=True)
        # Gradients are averaged over the processes, and it is their shares' sum that counts.
        self.processes.fabric.backward(total * self.processes.size)
        if in_parts is not None:
            in_parts.backward()
            self.processes.average_gradients(self.model.parameters())
        self.processes.average_gradients(self.losses.parameters())
        self.processes.average_statistics(self.model)
        if self.grad_clip_norm is not None:
            trained = [value for group in self.optimizer.adam.param_groups for value in group["params"]]
            seen["gradient_norm"] = torch.nn.utils.clip_grad_norm_(trained, self.grad_clip_norm)
        self.optimizer.adam.step()
        if self.ema is not None and not self.average_before:
            self.ema.update(step)
        return seen

    def _in_parts(self, batch: Batch) -> EmbeddingsInParts | None:
        """The batch embedded in micro batches, as many in every process; None where one takes it whole."""
        if not self.mini_batch_size:
            return None
        [parts] = self.processes.agree(-(-len(batch.image_labels) // self.mini_batch_size))
        if parts == 1:
            return None
        return EmbeddingsInParts(self.processes.fabric, self.model.module, batch, parts)
