"""One-line messages for a full disk or a folder that is not writable."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from traceback import walk_tb

_FULL = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")
_FORBIDDEN = ("EACCES", "EPERM")  # reading can raise these, too
_SUBPACKAGES = ("run", "report", "pictures", "staging", "data.cache")
_WRITERS = tuple(f"lightning_meta.{name}" for name in _SUBPACKAGES)


def disk_trouble(error: BaseException) -> str | None:
    """Find the disk error that caused an exception, since torch reports a failed write as an error of another type.

    Args:
        error: The exception.

    Returns:
        The file, if known, and the error of the disk; None if the exception was not caused by the disk, or concerns
        a file that this package does not write.
    """
    for behind in _behind(error):
        if isinstance(behind, OSError) and _is_of_writing(behind):
            return f"{behind.filename}: {behind.strerror}" if behind.filename else str(behind.strerror)
    return None


def _behind(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then its causes and contexts, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__]


def _is_of_writing(error: OSError) -> bool:
    """Whether an error is a full, read-only or failing disk, or a missing permission of a module that writes files."""
    name = errno.errorcode.get(error.errno or 0)
    return name in _FULL or (name in _FORBIDDEN and _raised_by_a_writer(error))


def _raised_by_a_writer(error: OSError) -> bool:
    """Whether the traceback passes through a module of this package that writes files."""
    names = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    return any(name == w or name.startswith(w + ".") for name in names for w in _WRITERS)
