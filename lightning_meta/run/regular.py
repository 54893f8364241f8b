"""A file that a stranger may have put there, before it is opened."""

from __future__ import annotations

import stat
from os import PathLike
from pathlib import Path

from lightning_meta.errors import UserError


def check_regular(path: str | PathLike[str]) -> int:
    """Refuse what is no ordinary file: a FIFO or a device would block for ever, a file of `/proc` has no end.

    Args:
        path: The file; a link is followed.

    Returns:
        Its size in bytes.

    Raises:
        UserError: There is no such file, it cannot be reached, or it is none.
    """
    try:
        found = Path(path).stat()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or has a NUL in it
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a folder, and a file is needed")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is a pipe, a socket or a device, and a file is needed")
    if not found.st_size:  # as those of /proc claim to be
        raise UserError(f"{path} is empty")
    return found.st_size
