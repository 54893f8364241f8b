"""Signal handlers, which only this file sets and restores."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = tuple(  # what stops a command; Windows has no SIGHUP
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class StoppedBySignal(Exception):
    """A signal stopped the command, and none of its runs is active any more.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def set_handler(number: int, handler: Any) -> None:
    """Set the handler of a signal; in threads other than the main one, where Python forbids it, do nothing.

    Args:
        number: Number of the signal.
        handler: A function, `signal.SIG_DFL` or `signal.SIG_IGN`; None, for a handler that was not set by Python and
            cannot be restored, sets the default.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals within the block; signals that are ignored, as SIGHUP under nohup, stay ignored.

    Args:
        numbers: Numbers of the signals.
        handler: Called with the number of the signal and the current stack frame.
    """
    previous = {number: before for number in numbers if (before := signal.getsignal(number)) != signal.SIG_IGN}
    for number in previous:
        set_handler(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            set_handler(number, before)


class Signals:
    """Signals that this process received within `recording`.

    They are recorded and not raised: an exception from the handler could come after a run was started and before it was
    recorded as started.

    Attributes:
        number: Number of the first signal; None if there was none.
        count: Number of signals.
    """

    number: int | None = None
    count = 0

    def record(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; this is the handler."""
        self.number = number if self.number is None else self.number
        self.count += 1

    def check(self, seconds: float = 0.0) -> None:
        """Wait for a signal, and stop if there is or was one.

        Args:
            seconds: Maximum waiting time.

        Raises:
            StoppedBySignal: A signal was received.
        """
        end = time.monotonic() + seconds
        while self.number is None and time.monotonic() < end:
            time.sleep(0.02)
        if self.number is not None:
            raise StoppedBySignal(self.number)


@contextmanager
def recording() -> Iterator[Signals]:
    """Record Ctrl-C, SIGTERM and SIGHUP instead of stopping; the caller checks when its files are consistent."""
    signals = Signals()
    with handling(STOPPING, signals.record):
        yield signals


@contextmanager
def delayed_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block.

    During `torch.save`, Ctrl-C would surface as an error about an incomplete file instead of `KeyboardInterrupt`.
    """
    signals = Signals()
    try:
        with handling([signal.SIGINT], signals.record):
            yield
    finally:
        if signals.count:
            signal.raise_signal(signal.SIGINT)
