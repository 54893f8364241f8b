"""How tests wait: for a condition or for the end of a process, never for a fixed time; and how often they kill."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

# Seconds after which a test that waits has hung. A machine with many times more work than cores takes minutes for what
# takes seconds, so no wait ends sooner; pytest's own limit, in pyproject.toml, is longer.
LIMIT = 900.0
ENDLESS = 2 * LIMIT  # seconds that a process sleeps which a test is to end; where the test fails, it ends by itself

KILL_ROUNDS = int(os.environ.get("LIGHTNING_META_KILL_ROUNDS", "0"))
"""Runs of each schedule that are killed; 0, in CI, is one run that is killed less often, and of fewer kinds."""


def wait_for(condition: Callable[[], Any], process: Any = None) -> None:
    """Wait until something is so.

    Args:
        condition: What.
        process: What is to bring it about, a `Popen`; without it there is nothing to wait for.
    """
    end = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None or condition(), f"ended with {process.returncode}"
        assert time.monotonic() < end, f"not so after {LIMIT} s"
        time.sleep(0.01)


class TooSlow(BaseException):
    """No error, which a library might take for its own."""


@contextlib.contextmanager
def computing_at_most(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` after so many seconds of this process's computing, and again where that was caught.

    Time in which other processes have the cores does not count. A test that waits is ended by pytest's own limit, which
    has the alarm to itself.
    """

    def too_slow(*_: Any) -> None:
        raise TooSlow(f"not done after {seconds} seconds of computing")

    before = signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
