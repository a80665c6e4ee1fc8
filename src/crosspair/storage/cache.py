"""What is kept between runs because it takes time to make anew: where it is, and how runs share it."""

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
    """Runs that need the same thing at the same time: one makes it, the others wait for it."""
    from filelock import FileLock

    with FileLock(path):
        yield
