"""Signals (SIGINT, SIGTERM) noted during a run, which then writes a checkpoint and stops between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - it is no error
    """Training stopped on a signal, after a checkpoint was written."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Noted:
    """The number of a signal that came, or 0."""

    def __init__(self) -> None:
        self.number = 0
        self.raises = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A context in which a signal raises Interrupted at once, also one that came before."""
        raise_if_stopped(self.number)
        self.raises = True
        try:
            yield
        finally:
            self.raises = False


def raise_if_stopped(number: int) -> None:
    """Raise Interrupted for a signal's number; 0 is none."""
    if number:
        raise Interrupted(number)


@contextmanager
def signals_noted() -> Iterator[Noted]:
    """SIGINT and SIGTERM are noted, so that the step ends and a checkpoint is written; a second one stops at once."""
    noted = Noted()
    before = {}

    def note(number: int, frame: FrameType | None) -> None:
        if noted.number:
            raise KeyboardInterrupt
        noted.number = number
        if noted.raises:
            raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # only the main thread may set handlers; elsewhere the caller handles signals
            break
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
