"""How the C library treats memory that tensors have given back."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

# glibc's names and numbers, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, for the next step to use.

    A training step on a CPU frees what it made. By default glibc gives blocks of some size back to the system at once,
    and the next step waits while the system hands out the same pages again, each cleared: a third of the time of a
    convolutional network. No number changes; the process holds its largest size until it ends. Nothing is done
    without glibc, or where the user has set one of glibc's own variables (`MALLOC_TRIM_THRESHOLD_` and the like).

    Returns:
        Whether it took effect.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # No block is mapped on its own, of any size: a threshold for that may be 32 MiB at most.
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 1 << 26}
    taken = [mallopt(option, value) for option, value in options.items()]
    _give_back_in_children()
    return all(taken)


@cache
def _give_back_in_children() -> None:
    """A forked worker needs nothing of what is kept; what it shared would be copied when its parent writes to it."""
    os.register_at_fork(after_in_child=lambda: ctypes.CDLL(None).malloc_trim(0))
