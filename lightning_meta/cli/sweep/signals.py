"""Ctrl-C, SIGTERM and a lost terminal, which a sweep heeds where its record is whole."""

from __future__ import annotations

import signal
import threading
import time
from types import TracebackType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
POLL = 0.2  # seconds


class StoppedBySignal(Exception):
    """The sweep was told to stop, and nothing of it runs any more.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Notes, within `with`, the signals that stop a process, and does nothing else about them.

    An exception out of a signal's handler might come between the start of a run and the note that it runs.

    Attributes:
        number: The first signal; None before it.
        count: How many there have been.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        """Take them over, but for those that are ignored, as SIGHUP is under nohup."""
        if threading.current_thread() is threading.main_thread():  # the only one that may
            known = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
            self._before = {n: signal.signal(n, self._note) for n in known if signal.getsignal(n) != signal.SIG_IGN}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Stop here if there was one.

        Raises:
            StoppedBySignal: There was.
        """
        if self.number is not None:
            raise StoppedBySignal(self.number)

    def check_for(self, seconds: float) -> None:
        """Stop if there is one within some seconds.

        Args:
            seconds: How long.

        Raises:
            StoppedBySignal: There was.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(0.02)
        self.check()

    def _note(self, number: int, frame: Any) -> None:
        self.number = number if self.number is None else self.number
        self.count += 1
