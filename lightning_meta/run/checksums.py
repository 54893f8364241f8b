"""Detect damaged checkpoint files by their checksums, once for a file that does not change.

A resume reads its checkpoint several times, so this process remembers which files passed which check.
"""

from __future__ import annotations

import struct
import time
import zipfile
from os import PathLike
from pathlib import Path

SETTLED = 3 * 10**9  # nanoseconds; file times are coarse, so a change soon after the last one may not be visible

_sound: set[tuple[str, tuple[int, ...]]] = set()


def damage(path: str | PathLike[str]) -> str | None:
    """Describe the damage of a checkpoint file; None if its checksums are right.

    A checkpoint is a zip archive with a checksum for each record, which `torch.load` does not compare. Comparing them
    takes about 0.1 s for 100 MB, once for a file that does not change. Bytes without a checksum, such as padding, do
    not affect what is read.
    """
    file = Path(path)
    if not file.is_file():
        return "is missing"
    try:
        state = state_of(file)
        if is_verified("checksums", state):
            return None
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # torch does not compress
                return "is refused: its records are compressed"
            if sum(member.file_size for member in members) > file.stat().st_size:
                return "is not a checkpoint, or is damaged: its records claim more bytes than the file has"
            written = any(member.CRC for member in members)  # not after `set_crc32_options(False)`
            damaged = archive.testzip() if written else None
        if damaged:
            return f"is damaged: {damaged.partition('/')[2]!r} in it is not what was written"
        remember("checksums", state)
        return None
    except zipfile.BadZipFile:
        return "is not a checkpoint, or is damaged"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except (EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError, struct.error):
        return "is damaged"


def state_of(path: str | PathLike[str]) -> tuple[int, ...]:
    """Identity, size and times of a file, which change when its content changes.

    Raises:
        OSError: The file cannot be accessed.
    """
    status = Path(path).stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_verified(check: str, state: tuple[int, ...]) -> bool:
    """Whether a file in this state has passed the check with this name."""
    return (check, state) in _sound


def remember(check: str, state: tuple[int, ...]) -> None:
    """Remember that a check has passed.

    Args:
        check: Name of the check.
        state: State of the file before it was read.
    """
    if time.time_ns() - max(state[-2:]) > SETTLED:
        _sound.add((check, state))
