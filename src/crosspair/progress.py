"""The progress bar of every long job: on stderr, quick on a screen, a line now and then in a log file."""

import sys
from collections.abc import Iterable
from functools import cache
from threading import RLock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """A tqdm bar; options are tqdm's."""
    on_screen = sys.stderr.isatty()
    return _bar()(items, mininterval=0.1 if on_screen else 10.0, miniters=1, dynamic_ncols=on_screen, **options)


@cache
def _bar() -> "type[tqdm[Any]]":
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # not subscriptable when it runs
        """A bar of this process alone, which may be forked or killed at any moment.

        tqdm's own lock is shared with forked processes: one that is killed while it has it stops all others forever.
        """

        monitor_interval = 0  # no thread to look at the clock: with miniters=1 every update does

    Bar.set_lock(RLock())
    return Bar
