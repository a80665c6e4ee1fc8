"""The projection into the joint space (linear and batch norm, paper, section 3), and LoRA adapters (Hu et al., 2021).

Adapters are small trained matrices beside the linear layers of an encoder whose own weights stay. They live in the
encoder's modules while it trains; a saved model has them added to its weights.
"""

import re
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.errors import UserError
from crosspair.models.config import ProjectionConfig

Layers = Literal["attention", "all-linear"]
Initializer = Literal["xavier", "slim_mobilenet_v1", "slim_resnet_v1"]


def _initialise(weight: Tensor, initializer: Initializer) -> None:
    """Fill weight [out, in]. TF-slim's distributions are cut at two of the standard deviations given here."""
    if initializer == "xavier":
        nn.init.xavier_uniform_(weight)
        return
    deviation = 0.09 if initializer == "slim_mobilenet_v1" else (2.6 / weight.shape[1]) ** 0.5
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


class Projection(nn.Module):
    """Features [n, in_features] to embeddings [n, out_features]. The batch norm's offset stands in for a bias.

    hidden_features: width of a hidden layer in front (batch norm, GELU, dropout); 0 leaves it out, as published.
    initializer: of the last linear layer, see `ProjectionConfig`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden_features: int = 0,
        dropout: float = 0.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
        initializer: Initializer = "xavier",
    ) -> None:
        super().__init__()
        self.hidden: nn.Sequential | None = None
        if hidden_features:
            self.hidden = nn.Sequential(
                nn.Linear(in_features, hidden_features, bias=False),
                nn.BatchNorm1d(hidden_features, eps=eps, momentum=momentum),
                nn.GELU(),
                nn.Dropout(dropout),
            )
        self.linear = nn.Linear(hidden_features or in_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features, eps=eps, momentum=momentum)
        _initialise(self.linear.weight, initializer)

    def forward(self, features: Tensor) -> Tensor:
        # Embeddings and losses stay in the weights' precision, also where the encoders run in bf16.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.linear.weight.dtype)
            if self.hidden is not None:
                features = self.hidden(features)
            embeddings: Tensor = self.norm(self.linear(features))
        return embeddings


class ProjectionHeads(nn.Module):
    """Projections side by side, to be trained by a loss each: features [n, in_features] -> [n, sum of their widths].

    Each head's embedding has unit length, so a cosine of the whole is the mean of the heads' cosines: an ensemble.
    """

    def __init__(self, heads: list[Projection]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([F.normalize(head(features), dim=1) for head in self.heads], dim=1)


class Unprojected(nn.Module):
    """Features that are embeddings already, such as those of an encoder with its own head: brought to full precision.

    Raises UserError when they don't have the dimension of the joint space.
    """

    def __init__(self, in_features: int, out_features: int, encoder: str) -> None:
        super().__init__()
        if in_features != out_features:
            raise UserError(
                f"the {encoder} encoder gives {in_features} dimensions and model.projection.dim is {out_features}; "
                "expected the same with model.projection.layers 0, set them equal or the layers to 1"
            )

    def forward(self, features: Tensor) -> Tensor:
        return features if features.dtype == torch.float64 else features.float()


def create_projection(
    features: int, config: ProjectionConfig, encoder: str
) -> Projection | ProjectionHeads | Unprojected:
    """The projection from an encoder's features to `config.dim`. Raises UserError, naming the encoder's side."""
    if config.heads < 1 or config.dim % config.heads or (config.heads > 1 and config.layers == 0):
        raise UserError(
            f"found model.projection.heads {config.heads} with dim {config.dim} and layers {config.layers}; expected "
            "at least 1 head, a multiple of heads as dim, and one head where layers is 0"
        )
    if config.layers == 0:
        return Unprojected(features, config.dim, encoder)
    heads = [
        Projection(
            features,
            config.dim // config.heads,
            hidden_features=config.hidden_dim if config.layers == 2 else 0,
            dropout=config.dropout,
            eps=config.norm_eps,
            momentum=config.norm_momentum,
            initializer=config.initializer,
        )
        for _ in range(config.heads)
    ]
    return ProjectionHeads(heads) if len(heads) > 1 else heads[0]


def add_adapters(
    encoder: nn.Module, what: str, *, rank: int, alpha: float, dropout: float = 0.0, layers: Layers = "attention"
) -> None:
    """Replace linear layers y = W x of an encoder by y = W x + alpha / rank * B A x, with B = 0 at first.

    rank: rows of A. dropout: share of x dropped before A, in training. layers: those of the attention, or all.
    Raises UserError where there are none, naming the encoder as `what`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    found = [name for name, module in encoder.named_modules() if type(module) is nn.Linear]
    chosen = [name for name in found if layers == "all-linear" or _in_attention(name)]
    if not chosen:
        hint = "set lora.layers to all-linear" if found else "train it without adapters (lora.encoders)"
        raise UserError(f"the {what} encoder has no {layers} layers for adapters; {hint}")
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)  # type: ignore[arg-type]
    inject_adapter_in_model(config, encoder)


def adapter_or_all(encoder: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of an encoder: its adapters where it has any, else all its weights."""
    named = list(encoder.named_parameters())
    return [value for name, value in named if _is_adapter(name)] or [value for _, value in named]


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the model would have without adapters, what they add being part of the weights."""
    state = {}
    for name, value in model.state_dict().items():
        if _is_adapter(name):
            continue
        layer, base, leaf = name.rpartition(".base_layer.")
        if base:
            if leaf == "weight":
                value = value + model.get_submodule(layer).get_delta_weight("default").to(value.dtype)  # type: ignore[operator]
            name = f"{layer}.{leaf}"
        state[name] = value
    return state


def _in_attention(name: str) -> bool:
    """Whether a part of a module's dotted name speaks of attention: attn, self_attn, SelfAttention, attention."""
    return re.search("attn|attention", name, re.IGNORECASE) is not None


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
