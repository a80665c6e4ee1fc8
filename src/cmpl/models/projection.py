"""The projection of an encoder's features into the joint space: linear and batch norm (paper, section 3)."""

import torch
from torch import Tensor, nn

from cmpl.errors import UserError


class Projection(nn.Module):
    """Features [n, in_features] to embeddings [n, out_features]. The batch norm's offset stands in for a bias.

    hidden_features: width of a hidden layer in front (batch norm, GELU, dropout); 0 leaves it out, as published.
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
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, features: Tensor) -> Tensor:
        # Embeddings and losses stay in the weights' precision, also where the encoders run in bf16.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.linear.weight.dtype)
            if self.hidden is not None:
                features = self.hidden(features)
            embeddings: Tensor = self.norm(self.linear(features))
        return embeddings


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
