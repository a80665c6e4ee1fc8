"""Two dimensions that keep neighbours together: exact t-SNE, for up to a few thousand points.

van der Maaten and Hinton, "Visualizing Data using t-SNE" (JMLR 2008), with the start from principal components of
Kobak and Berens (Nature Communications 2019) and the learning rate of Belkina et al. (ibid.), which make it repeatable
and keep the large structure. All n^2 pairs are held: 1,000 points take about 4 MB a matrix and a few seconds.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EXAGGERATION, _EXAGGERATED_STEPS = 12.0, 150
_STEPS = 500


def principal_components(points: Tensor, count: int = 2) -> Tensor:
    """The first components of points [n, d] as coordinates [n, count], each of the sign of its largest entry."""
    centred = points - points.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    components = torch.zeros(len(points), count, dtype=points.dtype)
    kept = min(count, u.shape[1])
    components[:, :kept] = u[:, :kept] * s[:kept]
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0)


def tsne(points: NDArray[Any], perplexity: float = 30.0) -> NDArray[np.float32]:
    """Coordinates [n, 2] of points [n, d]; the same for the same points. Distances are Euclidean.

    perplexity: how many neighbours count, smaller where there are fewer than three times as many points.
    """
    with torch.no_grad():
        given = torch.from_numpy(np.array(points, dtype=np.float32))
        places = principal_components(given)
        spread = places.std(0, unbiased=False).max()
        if len(given) < 5 or spread == 0:
            return places.numpy()
        affinities = _affinities(torch.cdist(given, given).square_(), min(perplexity, (len(given) - 1) / 3))
        result: NDArray[np.float32] = _descend(places / spread * 1e-4, affinities).numpy()
        return result


def kept_neighbours(points: NDArray[Any], places: NDArray[Any], k: int = 10) -> float:
    """Share of the k nearest of points [n, d] that are among the k nearest in places [n, 2], 0 to 1."""
    k = min(k, len(points) - 1)
    if k < 1:
        return 1.0
    near = []
    for each in (points, places):
        tensor = torch.from_numpy(np.array(each, dtype=np.float32))
        near.append(torch.cdist(tensor, tensor).fill_diagonal_(torch.inf).topk(k, largest=False).indices.numpy())
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*near, strict=True)]))


def _affinities(squared: Tensor, perplexity: float) -> Tensor:
    """Joint probabilities of all pairs [n, n] from squared distances, each row of the given perplexity."""
    squared.fill_diagonal_(torch.inf)
    squared -= squared.min(1, keepdim=True).values  # a factor of each row, so that the exponential stays in range
    low = torch.zeros(len(squared), 1)
    high = torch.full_like(low, torch.inf)
    precision = 1 / squared.masked_fill(squared.isinf(), 0).mean(1, keepdim=True).clamp(min=1e-12)
    for _ in range(50):
        weights = torch.exp(-squared * precision)
        p = weights / weights.sum(1, keepdim=True)
        entropy = torch.special.entr(p).sum(1, keepdim=True)
        wide = entropy > math.log(perplexity)
        low, high = torch.where(wide, precision, low), torch.where(wide, high, precision)
        precision = torch.where(high.isinf(), precision * 2, (low + high) / 2)
    joint = (p + p.T) / (2 * len(p))
    return joint.clamp_(min=1e-12)


def _descend(places: Tensor, affinities: Tensor) -> Tensor:
    """Gradient descent on the Kullback-Leibler divergence with momentum and a gain for each coordinate."""
    rate = max(len(places) / _EXAGGERATION / 4, 50.0)
    velocity, gains = torch.zeros_like(places), torch.ones_like(places)
    for step in range(_STEPS):
        early = step < _EXAGGERATED_STEPS
        kernel = 1 / (1 + torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").square_())
        kernel.fill_diagonal_(0)
        force = (affinities * (_EXAGGERATION if early else 1.0)).sub_(kernel / kernel.sum()).mul_(kernel)
        gradient = 4 * (force.sum(1, keepdim=True) * places - force @ places)
        gains = torch.where(gradient.sign() != velocity.sign(), gains + 0.2, gains * 0.8).clamp_(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        places = places + velocity
    return places - places.mean(0)
