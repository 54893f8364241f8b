"""Ctrl-C, SIGTERM and a lost terminal, which searches and ladders heed where their records are whole."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class StoppedBySignal(Exception):
    """The command was told to stop, and nothing of it runs any more.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """The signals that came to this process within `heeding`.

    An exception out of a signal's handler might come between the start of a run and the note that it runs.

    Attributes:
        number: The first signal; None before it.
        count: How many there have been.
    """

    number: int | None = None
    count = 0

    def note(self, number: int, frame: Any) -> None:
        """Note one, as a handler."""
        self.number = number if self.number is None else self.number
        self.count += 1

    def check(self, seconds: float = 0.0) -> None:
        """Stop if there was one, or is one within some seconds.

        Args:
            seconds: How long to wait.

        Raises:
            StoppedBySignal: There was.
        """
        end = time.monotonic() + seconds
        while self.number is None and time.monotonic() < end:
            time.sleep(0.02)
        if self.number is not None:
            raise StoppedBySignal(self.number)


@contextmanager
def heeding() -> Iterator[Signals]:
    """Note the signals that stop a process and do nothing else about them.

    Those that are ignored stay ignored, as SIGHUP under nohup.
    """
    signals = Signals()
    before = {}
    if threading.current_thread() is threading.main_thread():  # the only one that may
        known = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
        before = {n: signal.signal(n, signals.note) for n in known if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
