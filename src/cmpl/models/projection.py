"""The projection of an encoder's features into the joint space: linear and batch norm (paper, section 3)."""

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """Features [n, in_features] to embeddings [n, out_features]. The batch norm's offset stands in for a bias."""

    def __init__(self, in_features: int, out_features: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features, eps=eps, momentum=momentum)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, features: Tensor) -> Tensor:
        # Embeddings and losses stay in the weights' precision, also where the encoders run in bf16.
        with torch.autocast(features.device.type, enabled=False):
            embeddings: Tensor = self.norm(self.linear(features.to(self.linear.weight.dtype)))
        return embeddings
