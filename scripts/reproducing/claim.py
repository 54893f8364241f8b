"""One runner at a time for each run, on however many machines that share the folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from lightning_meta.errors import UserError


class Claim:
    """Holds a run as a context: `held` says whether this process has it.

    It is a lock of the operating system on a file, so it ends with the processes that have it open, however they end.
    Child processes get it too (`descriptor`): a training whose runner was killed goes on, and holds on to
    the run until it ends.

    Args:
        folder: The folder of the run, which is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "lock"
        self.descriptor = -1

    @property
    def held(self) -> bool:
        """Whether this process has the run."""
        return self.descriptor >= 0

    def __enter__(self) -> Claim:
        """Try to get it.

        Raises:
            UserError: The folder cannot be written to, or has no locks.
        """
        try:
            import fcntl

            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Opened for writing, as NFS asks for an exclusive lock.
            self.descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError) as error:
            self.__exit__(None, None, None)
            if not isinstance(error, BlockingIOError):  # that is another runner
                said = getattr(error, "strerror", None) or error
                raise UserError(
                    f"--runs: {self._file} cannot be locked ({said}); name a folder that is writable and has locks"
                ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back; not where a child still has it."""
        if self.held:
            os.close(self.descriptor)
            self.descriptor = -1
