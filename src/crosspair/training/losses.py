"""The weighted sum of a recipe's losses, with the parameters that some of them learn."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from crosspair.data.batching import Batch
from crosspair.losses import (
    CMPCLoss,
    InfoNCELoss,
    LearnedScale,
    SigLIPLoss,
    cmpc_terms,
    cmpm_terms,
    infonce_terms,
    sdm_terms,
    siglip_terms,
    triplet_terms,
)
from crosspair.losses.rows import cmpm_share
from crosspair.training.distributed import Gathered
from crosspair.training.recipe import LossConfig


class MatchingLosses(nn.Module):
    """The weighted sum of a recipe's losses.

    `cmpc` holds the class weights, `cmpm_scale`, `infonce` and `siglip` hold learned scales; each is None where the
    recipe leaves it out. heads: parts of the embeddings, of equal width, that are matched each by itself.
    """

    def __init__(self, config: LossConfig, num_classes: int, embedding_dim: int, heads: int = 1) -> None:
        super().__init__()
        self.config = config
        self.heads = heads
        self.weights = config.weights
        self.cmpc: CMPCLoss | None = None
        self.cmpm_scale: LearnedScale | None = None
        self.infonce: InfoNCELoss | None = None
        self.siglip: SigLIPLoss | None = None
        if "cmpc" in self.weights:
            self.cmpc = CMPCLoss(num_classes, embedding_dim, config.label_smoothing)
        if "cmpm" in self.weights and config.cmpm_scale is not None:
            self.cmpm_scale = LearnedScale(config.cmpm_scale, largest=100.0)
        if "infonce" in self.weights:
            self.infonce = InfoNCELoss(config.infonce_temperature, learned=config.infonce_learned)
        if "siglip" in self.weights:
            self.siglip = SigLIPLoss(config.siglip_temperature, config.siglip_bias)

    def forward(
        self, image_embeddings: Tensor, text_embeddings: Tensor, batch: Batch, gathered: Gathered | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise, and its terms and learned scales by the names they have in metrics.jsonl.

        With several heads the scalar is the sum over them, and a term is their mean.

        gathered: what all processes hold. With several of them everything returned is this process's share: the sum
        over the processes is the value for the whole batch.
        """
        scales = self._scales()
        images, texts = image_embeddings.chunk(self.heads, dim=1), text_embeddings.chunk(self.heads, dim=1)
        found = [
            self._head(head, images[head], texts[head], batch, scales, gathered and gathered.head(head, self.heads))
            for head in range(self.heads)
        ]
        total = torch.stack([loss for loss, _ in found]).sum()
        terms = {name: torch.stack([parts[name] for _, parts in found]).mean() for name in found[0][1]}
        processes = 1 if gathered is None else gathered.processes
        return total, terms | {name: value / processes for name, value in scales.items()}

    def _head(
        self,
        head: int,
        images: Tensor,
        texts: Tensor,
        batch: Batch,
        scales: dict[str, Tensor],
        gathered: Gathered | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum for one head, and its terms."""
        terms: dict[str, Tensor] = {}
        total = images.new_zeros(())
        for name, weight in self.weights.items():
            if gathered is None or gathered.processes == 1:
                parts = self._parts(name, head, images, texts, batch, scales)
            else:
                parts = self._shares(name, head, images, texts, batch, scales, gathered)
            terms |= {f"{name}_{part}": value for part, value in parts.items()}
            first, second = parts.values()
            terms[name] = first + second
            total = total + weight * terms[name]
        return total, terms

    def _scales(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.cmpm_scale is not None:
            found["cmpm_scale"] = self.cmpm_scale()
        if self.infonce is not None:
            found["infonce_scale"] = self.infonce.scale()
        if self.siglip is not None:
            found |= {"siglip_scale": self.siglip.scale(), "siglip_bias": self.siglip.bias}
        return found

    def _parts(
        self, name: str, head: int, images: Tensor, texts: Tensor, batch: Batch, scales: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The two terms of a loss by their names."""
        config = self.config
        table = (images, texts, batch.image_labels, batch.text_labels)
        if name == "cmpm" and self.cmpm_scale is None:
            matmul_precision = config.cmpm_matmul_precision
            return cmpm_terms(
                *table, ratio_epsilon=config.cmpm_ratio_epsilon, matmul_precision=matmul_precision
            )._asdict()
        if name == "cmpm":  # projections of embeddings of one length are scaled cosines, as SDM has them
            return sdm_terms(*table, 1 / scales["cmpm_scale"])._asdict()
        if name == "infonce":
            return infonce_terms(*table, scales["infonce_scale"])._asdict()
        if name == "sdm":
            return sdm_terms(*table, config.sdm_temperature)._asdict()
        if name == "triplet":
            return triplet_terms(*table, config.triplet_margin)._asdict()
        if name == "siglip":
            return siglip_terms(*table, scales["siglip_scale"], scales["siglip_bias"])._asdict()
        assert self.cmpc is not None
        pairs = (images[batch.image_rows], texts, batch.text_labels)
        sampled, weight = config.cmpc_classes, self.cmpc.weight.chunk(self.heads)[head]
        return cmpc_terms(*pairs, weight, config.label_smoothing, sampled_classes=sampled)._asdict()

    def _shares(
        self,
        name: str,
        head: int,
        images: Tensor,
        texts: Tensor,
        batch: Batch,
        scales: dict[str, Tensor],
        gathered: Gathered,
    ) -> dict[str, Tensor]:
        """What this process adds to the two terms of a loss over all processes."""
        if name == "cmpc":
            parts = self._parts(name, head, images, texts, batch, scales)
            return {part: value * gathered.share_of_texts for part, value in parts.items()}
        if name == "cmpm" and self.cmpm_scale is None:
            own = (gathered.image_rows, gathered.text_rows)
            return cmpm_share(*gathered.table, *own, ratio_epsilon=self.config.cmpm_ratio_epsilon)._asdict()
        # The others are computed whole by every process, which adds a part of that.
        images, texts, image_labels, text_labels = gathered.table
        everything = replace(batch, image_labels=image_labels, text_labels=text_labels)
        parts = self._parts(name, head, images, texts, everything, scales)
        return {part: value / gathered.processes for part, value in parts.items()}
