"""Remember files that passed a check in this process, as a resume reads its checkpoint several times."""

from __future__ import annotations

import time
from os import PathLike
from pathlib import Path

SETTLED = 3 * 10**9  # nanoseconds; file times are coarse, so a change soon after the last one may not be visible

_sound: set[tuple[str, tuple[int, ...]]] = set()


def state_of(path: str | PathLike[str]) -> tuple[int, ...]:
    """Identity, size and times of a file, which change when its content changes.

    Raises:
        OSError: The file cannot be accessed.
    """
    status = Path(path).stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_verified(check: str, state: tuple[int, ...]) -> bool:
    """Whether a file in this state has passed the check with this name."""
    return (check, state) in _sound


def remember(check: str, state: tuple[int, ...]) -> None:
    """Remember that a check has passed.

    Args:
        check: Name of the check.
        state: State of the file before it was read.
    """
    if time.time_ns() - max(state[-2:]) > SETTLED:
        _sound.add((check, state))
