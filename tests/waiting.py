"""Tests wait for a condition or for the end of a process, never for a fixed time."""

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
ENDLESS = 2 * LIMIT  # seconds that a process sleeps if a test is to stop it; if the test fails, it ends by itself

KILL_ROUNDS = int(os.environ.get("LIGHTNING_META_KILL_ROUNDS", "0"))
"""Number of killed runs per schedule; with 0, the default and in CI, one run with fewer kills and fewer schedules."""


def wait_for(condition: Callable[[], Any], process: Any = None) -> None:
    """Wait until a condition is true.

    Args:
        condition: Condition to wait for.
        process: Process that brings it about, a `Popen`; the test fails if it ends before the condition is true.
    """
    end = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None or condition(), f"ended with {process.returncode}"
        assert time.monotonic() < end, f"not true after {LIMIT} s"
        time.sleep(0.01)


class TooSlow(BaseException):
    """A timeout that is not an `Exception`, which a library might catch."""


@contextlib.contextmanager
def computing_at_most(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` after a number of seconds of CPU time of this process, and again if it was caught.

    Time in which other processes use the cores does not count. A test that waits is stopped by pytest's timeout, which
    uses the alarm signal.
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
