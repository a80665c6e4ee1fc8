"""The user's cache: its directory, and a lock so that several processes make an entry once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def user_cache(kind: str) -> Path:
    """The folder for one kind of things: below $CROSSPAIR_CACHE, or crosspair in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CROSSPAIR_CACHE") or Path(base) / "crosspair") / kind


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A lock on a cache entry: of processes that need it at the same time one makes it, the others wait."""
    from filelock import FileLock

    with FileLock(path):
        yield
