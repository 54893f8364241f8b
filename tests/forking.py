"""Fork a process that has no other threads."""

from __future__ import annotations

import os
from pathlib import Path


def fork() -> int:
    """Fork this process, which must have one thread.

    Of several threads, a fork copies only the one that calls it; locks that another one holds stay locked for ever.

    Returns:
        0 in the new process, and its number in the old one.
    """
    threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").is_dir() else 1
    if threads > 1:
        raise RuntimeError(f"a process with {threads} threads is not forked")
    return os.fork()
