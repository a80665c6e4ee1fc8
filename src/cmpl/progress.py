"""The progress bar of every long job: on stderr, quick on a screen, a line now and then in a log file."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """A tqdm bar; options are tqdm's."""
    from tqdm import tqdm

    on_screen = sys.stderr.isatty()
    return tqdm(items, mininterval=0.1 if on_screen else 10.0, dynamic_ncols=on_screen, **options)
