"""Fixtures that many tests use: a split that lives in memory."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from crosspair.data.batching import Split
from tests.fixtures.paths import REPOSITORY

pytest_plugins = [
    "tests.fixtures.models",
    "tests.fixtures.galleries",
    "tests.fixtures.original",
    "tests.fixtures.results",
]


@dataclass
class MemorySplit(Split):
    """A split without a directory."""

    captions: list[list[str]]
    labels: np.ndarray
    images: list[bytes] = field(default_factory=list)
    checksum: str = "memory"
    caption_ids: list[list[int]] | None = None

    @property
    def image_ids(self) -> list[str]:
        return [f"picture {index}" for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int) -> bytes:
        return self.images[index]


@pytest.fixture
def memory_split() -> type[MemorySplit]:
    return MemorySplit


@pytest.fixture
def shared_oracle() -> Path:
    """The whole of the reference data, where it is at hand; the tests that need it skip elsewhere and say so."""
    path = REPOSITORY.parent / "shared" / "oracle"
    if not path.is_dir():
        pytest.skip("the full reference data (../shared/oracle) is not here")
    return path
