"""A disk that is full, or a folder that cannot be written, in one line."""

from __future__ import annotations

import errno

_NAMES = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM")
_NUMBERS = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}


def disk_trouble(error: BaseException) -> str | None:
    """What the disk said, if it is behind an error; torch reports its own failure to write a file in other words.

    Args:
        error: What was raised.

    Returns:
        The file, where it is known, and what is wrong with it; None where the disk has nothing to do with it.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in _NUMBERS:
            return f"{cause.filename}: {cause.strerror}" if cause.filename else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return None
