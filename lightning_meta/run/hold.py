"""A run directory that one process at a time writes to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from lightning_meta.errors import UserError


class Hold:
    """Keeps other processes from training the same run, until `release` or the end of this process, however it ends.

    It is a lock of the operating system on the directory, so no file is left behind. Where the system or the file
    system has no such locks (NFS has none on directories), nothing is kept from anyone.

    Args:
        directory: The run directory.

    Raises:
        UserError: Another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._descriptor: int | None = None
        self._process = os.getpid()
        try:
            import fcntl

            self._descriptor = os.open(directory, os.O_RDONLY)
            _HELD.add(self._descriptor)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise UserError(
                f"{directory}: another process is training this run, or has it open; wait for its end, or stop it first"
            ) from error
        except (ImportError, OSError):
            self.release()

    def release(self) -> None:
        """Let go."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _HELD and self._process == os.getpid():
            _HELD.remove(descriptor)
            os.close(descriptor)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lock cannot be copied")

    def __del__(self) -> None:
        self.release()


_HELD: set[int] = set()


def _let_go_in_child() -> None:
    """A process that was forked, such as a loader's worker, may outlive the one that holds on."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


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
