"""Files that a check has found sound in this process: a resume reads its checkpoint several times."""

from __future__ import annotations

import time
from os import PathLike
from pathlib import Path

SETTLED = 3 * 10**9  # nanoseconds; in a younger file a further change may leave no trace, as clocks of disks are coarse

_sound: set[tuple[str, tuple[int, ...]]] = set()


def state_of(path: str | PathLike[str]) -> tuple[int, ...]:
    """What changes with a file.

    Raises:
        OSError: It cannot be reached.
    """
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def is_verified(check: str, state: tuple[int, ...]) -> bool:
    """Whether the check of this name has passed for a file in this state."""
    return (check, state) in _sound


def remember(check: str, state: tuple[int, ...]) -> None:
    """Remember that the check has passed.

    Args:
        check: Its name.
        state: Of the file before it was read.
    """
    if time.time_ns() - max(state[-2:]) > SETTLED:
        _sound.add((check, state))
