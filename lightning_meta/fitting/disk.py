"""A disk that is full, or a folder that cannot be written, in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from traceback import walk_tb

_FULL = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")
_FORBIDDEN = ("EACCES", "EPERM")  # of reading as well
_ROOMS = ("run", "report", "pictures", "staging", "data.cache")
_WRITERS = tuple(f"lightning_meta.{room}" for room in _ROOMS)


def disk_trouble(error: BaseException) -> str | None:
    """What the disk said, if it is behind an error; torch reports its own failure to write a file in other words.

    Args:
        error: What was raised.

    Returns:
        The file, where it is known, and what is wrong with it; None where the disk has nothing to do with it, or
        where what cannot be read or written is none of this package's files.
    """
    for behind in _behind(error):
        if isinstance(behind, OSError) and _is_of_writing(behind):
            return f"{behind.filename}: {behind.strerror}" if behind.filename else str(behind.strerror)
    return None


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and what was being handled when it was raised, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__]


def _is_of_writing(error: OSError) -> bool:
    name = errno.errorcode.get(error.errno or 0)
    return name in _FULL or (name in _FORBIDDEN and _raised_by_a_writer(error))


def _raised_by_a_writer(error: OSError) -> bool:
    names = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    return any(name == w or name.startswith(w + ".") for name in names for w in _WRITERS)
