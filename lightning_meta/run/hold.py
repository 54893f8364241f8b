"""A lock on a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from lightning_meta.errors import UserError

LOCK = "run.lock"


class Hold:
    """Locks a run, so that no other process trains it, until `release` or the end of this process.

    It is a lock of the operating system on a file in the directory; nothing waits for it. Forked processes, such as
    workers of a loader, do not hold it. If the file system has no locks or the directory is not writable, nothing is
    locked.

    Args:
        directory: The run directory.

    Raises:
        UserError: Another process holds the lock.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = FileLock(directory / LOCK, blocking=False, fallback_to_soft=False)
        if not directory.is_dir():  # filelock would create it
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
        """Release the lock."""
        self._lock.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lock cannot be copied")


def is_held(directory: Path) -> bool:
    """Whether a process is training the run in a directory.

    Args:
        directory: The run directory; if it does not exist, the result is false.
    """
    try:
        Hold(directory).release()
    except UserError:
        return True
    return False
