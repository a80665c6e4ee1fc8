"""The reference cases of the losses, one dictionary a case."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_ORACLE = Path(__file__).parents[1] / "oracle" / "losses"


@pytest.fixture(scope="session")
def oracle_case() -> Callable[[str], dict[str, Any]]:
    """`cmpm07` or `cmpc13` to that case's arrays, its inputs `image`, `text` (and `W`) filled in."""
    files = {name: np.load(_ORACLE / f"{name}.npz") for name in ("cmpm", "cmpc")}

    def load(name: str) -> dict[str, Any]:
        arrays = files[name[:4]]
        case = {key[len(name) + 1 :]: arrays[key] for key in arrays.files if key.startswith(f"{name}_")}
        if "image" not in case:
            size = f"b{case['batch']}_d{case['dim']}"
            case["image"] = files["cmpm"][f"base_image_{size}"] * case["scale"]
            case["text"] = files["cmpm"][f"base_text_{size}"] * case["scale"]
            if name.startswith("cmpc"):
                case["W"] = arrays[f"W_{size}"]
        return case

    return load
