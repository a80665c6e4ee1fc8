"""The reference cases of the losses, one dictionary a case."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crosspair.original.verify.reference import load, loss_case
from tests.fixtures.paths import ORACLE


@pytest.fixture(scope="session")
def oracle_case() -> Callable[[str], dict[str, Any]]:
    """`cmpm07` or `cmpc13` to that case's arrays, its inputs `image`, `text` (and `W`) filled in.

    Some cases come with the package, the others lie beside the tests.
    """
    arrays = {**load("cmpm"), **load("cmpc")}
    for name in ("cmpm", "cmpc"):
        with np.load(ORACLE / "losses" / f"{name}.npz") as file:
            arrays |= dict(file)
    return lambda name: loss_case(arrays, name)
