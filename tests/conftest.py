"""Fixtures that many tests use: a split that lives in memory, and registries without what other tests added."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from crosspair import registry
from crosspair.data.batching import Split
from tests.fixtures.paths import REPOSITORY

pytest_plugins = [
    "tests.fixtures.hub",
    "tests.fixtures.models",
    "tests.fixtures.galleries",
    "tests.fixtures.original",
    "tests.fixtures.pairs",
    "tests.fixtures.results",
    "tests.fixtures.toy",
]


@pytest.fixture(autouse=True)
def _plugins_of_one_test() -> Iterator[None]:
    """Forget what a test's plugins registered; built-in modules stay, as they register once in a process."""
    plugins = dict(registry._plugins)
    known = {kind: set(kind._entries) | set(kind._built_in) for kind in registry.REGISTRIES.values()}
    yield
    registry._plugins.clear()
    registry._plugins.update(plugins)
    for kind, names in known.items():
        for name in set(kind._entries) - names:
            del kind._entries[name]


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
