"""Detect damaged checkpoint files by their checksums."""

from __future__ import annotations

import struct
import zipfile
from os import PathLike
from pathlib import Path

from lightning_meta.run.verified import is_verified, remember, state_of


def damage(path: str | PathLike[str]) -> str | None:
    """Describe the damage of a checkpoint file; None if its checksums are right.

    A checkpoint is a zip archive with a checksum for each record, which `torch.load` does not compare. Comparing them
    takes about 0.1 s for 100 MB, once for a file that does not change. Bytes without a checksum, such as padding, do
    not affect what is read.

    Args:
        path: Path of the file.
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
