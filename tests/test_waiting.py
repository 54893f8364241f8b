"""A limit on computing ends what never ends, and leaves pytest's own limit alone."""

from __future__ import annotations

import signal
import time

import pytest

from tests.waiting import TooSlow, computing_at_most


def test_what_never_ends_is_ended_and_the_limit_of_pytest_stays() -> None:
    limit = signal.getitimer(signal.ITIMER_REAL)
    handlers = [signal.getsignal(n) for n in (signal.SIGALRM, signal.SIGPROF)]
    with pytest.raises(TooSlow), computing_at_most(0.05):
        sum(iter(lambda: 1, 0))  # without end
    assert bool(signal.getitimer(signal.ITIMER_REAL)[0]) == bool(limit[0])
    assert [signal.getsignal(n) for n in (signal.SIGALRM, signal.SIGPROF)] == handlers
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_time_of_other_processes_does_not_count() -> None:
    with computing_at_most(0.2):
        time.sleep(0.5)
