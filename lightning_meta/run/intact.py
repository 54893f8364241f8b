"""Checks of a checkpoint file that bound the memory and time of `torch.load` by the size of the file.

A resume reads its checkpoint several times, so a check that a file has passed is repeated only if the file changes.
"""

from __future__ import annotations

import struct
import time
import zipfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from lightning_meta.errors import UserError
from lightning_meta.reading import check_regular
from lightning_meta.run.outline import HostileError, check_outline
from lightning_meta.specifications import holds_tensors

LARGEST_PICKLE = 2**28  # bytes of plain data; tensors are in separate records
SETTLED = 3 * 10**9  # nanoseconds; file times are coarse, so a change soon after the last one may not be visible
_END = struct.Struct("<4s4H2LH")  # end of a zip archive without a comment
_UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, zipfile.BadZipFile, struct.error, EOFError, LookupError, RuntimeError),
    *(TypeError, ValueError, AttributeError, ArithmeticError, MemoryError),
)

_passed: set[tuple[Any, ...]] = set()


def damage(path: str | PathLike[str]) -> str | None:
    """Describe the damage of a checkpoint file; None if its checksums are right.

    A checkpoint is a zip archive with a checksum for each record, which `torch.load` does not compare. Comparing them
    takes about 0.1 s for 100 MB. Bytes without a checksum, such as padding, do not affect what is read.
    """
    if not Path(path).is_file():
        return "is missing"
    try:
        return _once(_wrong_records, Path(path))
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except _UNREADABLE:
        return "is not a checkpoint, or is damaged"


def check_before_torch(path: str | PathLike[str]) -> None:
    """Refuse a file for which `torch.load` would block or allocate more memory than the file has data.

    `torch.save` writes a zip archive with a pickle and one record per storage.
    """
    check_regular(path)
    try:
        _once(_check_archive, Path(path))
    except HostileError as error:
        raise UserError(f"{path} is refused: {error}") from error
    except _UNREADABLE as error:
        raise UserError(f"{path} is not a checkpoint, or is damaged") from error


def check_contents(checkpoint: Any, path: str | PathLike[str]) -> None:
    """Refuse data from a file that is not a checkpoint of Lightning and this package."""
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a Lightning checkpoint: it has no `state_dict`")
    weights, stored = checkpoint["state_dict"], checkpoint.get("lightning_meta")
    versions = getattr(weights, "_metadata", {})  # versions of modules by name, which `load_state_dict` reads
    is_sound = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    is_sound &= isinstance(versions, dict) and all(isinstance(version, dict) for version in versions.values())
    try:
        if is_sound and stored is not None:  # the arguments are checked where they are used
            is_sound = isinstance(stored, dict) and not holds_tensors(stored)
            is_sound = is_sound and isinstance(stored.get("init_args", {}), dict)
    except UserError as error:  # it is too large to look at
        raise UserError(f"{path}: {error}") from error
    if not is_sound:
        raise UserError(f"{path} is not a checkpoint of lightning_meta, or is damaged")


def _once(check: Callable[[Path], str | None], path: Path) -> str | None:
    status = path.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    state = (check, status.st_dev, status.st_ino, status.st_size, *times)
    wrong = None if state in _passed else check(path)
    if wrong is None and time.time_ns() - max(times) > SETTLED:
        _passed.add(state)
    return wrong


def _wrong_records(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # torch does not compress
            return "is refused: its records are compressed"
        if sum(member.file_size for member in members) > path.stat().st_size:
            return "is refused: its records claim more bytes than the file has"
        has_checksums = any(member.CRC for member in members)  # not after `set_crc32_options(False)`
        damaged = archive.testzip() if has_checksums else None
    return f"is damaged: {damaged.partition('/')[2]!r} in it is not what was written" if damaged else None


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        with path.open("rb") as file:
            file.seek(-_END.size, 2)
            mark, *_, start, comment = _END.unpack(file.read(_END.size))
    if mark != b"PK\5\6" or comment or start not in (archive.start_dir, 2**32 - 1):
        raise HostileError("its table of contents is not where it says")  # torch would read a different one
    names = [record.filename.lower() for record in records]  # torch ignores the case of names
    if len(set(names)) < len(names):
        raise HostileError("two of its records have the same name")
    reader: Any = torch._C.PyTorchFileReader(str(path))
    if reader.has_record("constants.pkl"):
        raise HostileError("it is a program of TorchScript")
    if reader.get_record_size("data.pkl") > LARGEST_PICKLE:
        raise HostileError(f"its plain data are more than {LARGEST_PICKLE / 2**20:.0f} MiB")
    check_outline(reader.get_record("data.pkl"), lambda key: int(reader.get_record_size(f"data/{key}")))
