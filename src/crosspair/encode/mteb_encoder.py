"""A model as an encoder of the benchmark library `mteb`, so that its tasks can be run on it.

    mteb.evaluate(crosspair.mteb_model("RUN/model"), mteb.get_tasks(tasks=["Flickr30kT2IRetrieval"]))

The protocol is `mteb.models.EncoderProtocol` of mteb 2: inputs come as batches with a list of texts, images, or both.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crosspair.encode.model import DualEncoder
from crosspair.encode.storage import model_checksum
from crosspair.errors import UserError
from crosspair.progress import progress_bar


class MTEBEncoder:
    """Texts and images of mteb's tasks into the space of a model; similarities are cosines.

    model: that encodes. meta: mteb's `ModelMeta` of it, under whose name and revision results are stored.
    """

    def __init__(self, model: DualEncoder, meta: Any) -> None:
        self.model = model
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        show_progress_bar: bool = True,
        **others: Any,
    ) -> Tensor:
        """Batches of n items in all -> float32 [n, dim], on the CPU.

        inputs: batches with a list `text`, a list `image` of PIL images, or both. An item with a text and an image
        is the sum of their embeddings, as with mteb's own wrappers of CLIP; any other has unit length.
        task_metadata, hf_split, hf_subset, prompt_type, others: which mteb tells; the model knows no prompts.
        Raises UserError for batches without either, such as those of sounds.
        """
        rows = [torch.empty(0, self.model.config.projection.dim)]
        for batch in progress_bar(inputs, desc="encoding", unit=" batches", disable=not show_progress_bar, leave=False):
            sides = []
            if "text" in batch:
                sides.append(self.model.encode_text(list(batch["text"])))
            if "image" in batch:
                sides.append(self.model.encode_image(list(batch["image"])))
            if not sides:
                raise UserError(f"found a task of {', '.join(batch)}; expected one of texts and images, name another")
            rows.append(torch.stack(sides).sum(dim=0))
        return torch.cat(rows)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [n, m] in -1..1 of two arrays [n, dim] and [m, dim]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [n] in -1..1 between the rows of two arrays [n, dim]."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)


def mteb_model(model: str | Path, *, name: str | None = None, device: str = "auto") -> MTEBEncoder:
    """A model for `mteb.evaluate`.

    model: its directory or its name, as `DualEncoder.from_pretrained` takes them. name: owner/model, under which mteb
    keeps results; None makes it of the directory's name. Its revision is the model's checksum, so that results of a
    model that was trained again are never taken for those of the one before. device: auto, cpu, cuda, cuda:1 or mps.
    Raises UserError when there is no such model, and where mteb is not installed.
    """
    try:
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction
    except ImportError as error:
        raise UserError(f"mteb can't be imported ({error}); run: pip install 'crosspair[mteb]'") from error
    loaded = DualEncoder.from_pretrained(model, device=device)
    facts = {
        "name": name or _benchmark_name(str(model)),
        "revision": model_checksum(model),
        "modalities": ["image", "text"],
        "framework": ["PyTorch"],
        "embed_dim": loaded.config.projection.dim,
        "n_parameters": sum(value.numel() for value in loaded.parameters()),
        "similarity_fn_name": ScoringFunction.COSINE,
        "use_instructions": False,
    }
    return MTEBEncoder(loaded, ModelMeta.create_empty(overwrites=facts))


def _benchmark_name(model: str) -> str:
    """owner/model: a hub's name as it is, RUN/model by its run, another directory by its own name."""
    path = Path(model)
    if not path.exists():
        return model
    parts = path.resolve().parts
    return f"crosspair/{parts[-2] if parts[-1] == 'model' and len(parts) > 2 else parts[-1]}"


def _unit(embeddings: Any) -> Tensor:
    return F.normalize(torch.as_tensor(embeddings).float(), dim=-1)
