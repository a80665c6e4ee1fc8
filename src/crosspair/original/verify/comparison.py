"""One line of the table that `crosspair verify` prints."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Comparison:
    """What was compared with the original, the largest difference found and the largest one allowed."""

    what: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """A difference that is not a number fails."""
        return self.difference <= self.tolerance


def largest_difference(found: ArrayLike | torch.Tensor, expected: ArrayLike) -> float:
    """Largest absolute difference; NaN where only one of both has a number. Raises ValueError for other shapes."""
    values, reference = _array(found), _array(expected)
    if values.shape != reference.shape:
        raise ValueError(f"found shape {values.shape}, the reference has {reference.shape}")
    return float(np.abs(values - reference).max())


def largest_share(found: ArrayLike | torch.Tensor, expected: ArrayLike) -> float:
    """Largest absolute difference as a share of the largest expected entry."""
    size = float(np.abs(_array(expected)).max())
    return largest_difference(found, expected) / size if size else largest_difference(found, expected)


def worst(differences: "list[float]") -> float:
    """The largest of some differences; NaN if any is."""
    return float(np.max(differences))


def _array(values: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
