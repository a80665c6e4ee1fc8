"""Reference numbers of the original's own functions, which ship with the package, and differences from them.

The arrays were made by running the published TensorFlow system on seeded random numbers and generated images; no code,
data set or trained model of it is among them. Keys and layouts are TensorFlow's: images and maps end in their channels,
convolution weights are height, width, in, out, matrices in, out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

Arrays = dict[str, np.ndarray]


def load(name: str) -> Arrays:
    """The arrays of a reference file: `cmpm`, `cmpc`, `text_tower`, `training/batches` and so on."""
    path = files("crosspair.original.verify") / "fixtures" / f"{name}.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def weights(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The weights among a tower's arrays, under their TensorFlow names."""
    return {key.removeprefix("w:"): value for key, value in arrays.items() if key.startswith("w:")}


def loss_case(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """One case of the losses (`cmpm07`, `cmpc13`), its inputs `image`, `text` and, for CMPC, `W` filled in.

    arrays: those of `cmpm` and, for CMPC, of `cmpc` too; cases share base inputs, which their scale multiplies.
    """
    case: dict[str, Any] = {key.removeprefix(f"{name}_"): arrays[key] for key in arrays if key.startswith(f"{name}_")}
    if "image" not in case:
        size = f"b{case['batch']}_d{case['dim']}"
        case["image"] = arrays[f"base_image_{size}"] * case["scale"]
        case["text"] = arrays[f"base_text_{size}"] * case["scale"]
        if name.startswith("cmpc"):
            case["W"] = arrays[f"W_{size}"]
    return case


def case_names(arrays: Mapping[str, np.ndarray], loss: str) -> list[str]:
    """Names of the cases of a loss, `cmpm` or `cmpc`, in order."""
    return sorted({key[:6] for key in arrays if key.startswith(loss)})


@dataclass(frozen=True)
class Comparison:
    """A comparison with the original: its name, the largest difference found and the largest one allowed."""

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
