"""A lock for each run, so that only one process trains it, also across machines that share the folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from filelock import lock_descriptor

from lightning_meta.errors import UserError


class Claim:
    """Context manager that tries to lock a run; `held` is whether this process has the lock.

    It is the kind of lock that a run directory has (`lightning_meta.run.directory`), on a descriptor of our own: child
    processes inherit it, and the operating system releases it when all of them have ended. So a training whose parent
    was killed continues, and keeps the lock until it ends. Nothing waits for the lock.

    Args:
        folder: Folder of the run, which is created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "lock"
        self.descriptor = -1

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self.descriptor >= 0

    def __enter__(self) -> Claim:
        """Try to get the lock.

        Raises:
            UserError: The folder is not writable, or its file system has no locks.
        """
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Opened for writing, as NFS asks for an exclusive lock.
            self.descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            locked = lock_descriptor(self.descriptor, blocking=False)
        except OSError as error:
            self.__exit__(None, None, None)
            raise UserError(
                f"--runs: {self._file} cannot be locked ({error.strerror or error}); name a writable folder that "
                "supports locks"
            ) from error
        if not locked:  # another process has it
            self.__exit__(None, None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock, unless a child process still has it."""
        if self.held:
            os.close(self.descriptor)
            self.descriptor = -1
