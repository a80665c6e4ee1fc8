"""Reference arrays of the original's towers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Arrays]:
    """File name without suffix to its arrays."""

    def load(name: str) -> Arrays:
        with np.load(Path(__file__).parents[1] / "oracle" / "legacy" / f"{name}.npz") as file:
            return dict(file)

    return load


@pytest.fixture(scope="session")
def oracle_weights(oracle: Callable[[str], Arrays]) -> Callable[[str], Arrays]:
    """File name without suffix to the weights in it, under their TensorFlow names."""
    return lambda name: {key[2:]: value for key, value in oracle(name).items() if key.startswith("w:")}
