"""A run directory that one process at a time writes to."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from lightning_meta.errors import UserError

LOCK = "run.lock"


class Hold:
    """Keeps other processes from training the same run, until `release` or the end of this process, however it ends.

    It is a lock of the operating system on a file of the directory, and nobody waits for it. A process that was forked,
    such as a loader's worker, does not hold it. Where the file system has no such locks, or the directory cannot be
    written to, nothing is kept from anyone.

    Args:
        directory: The run directory.

    Raises:
        UserError: Another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = FileLock(directory / LOCK, blocking=False, fallback_to_soft=False)
        if not directory.is_dir():  # which filelock would make
            return
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{directory}: another process is training this run, or has it open; wait for its end, or stop it first"
            ) from error
        except OSError:
            pass

    def release(self) -> None:
        """Let go."""
        self._lock.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lock cannot be copied")


def is_held(directory: Path) -> bool:
    """Whether a process trains the run in this directory.

    Args:
        directory: The run directory; one that is missing is not held.
    """
    try:
        Hold(directory).release()
    except UserError:
        return True
    return False
