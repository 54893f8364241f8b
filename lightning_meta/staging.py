"""Atomic writes: a file is written under a temporary name beside its target, and renamed when it is complete."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGED = r"\.(?P<pid>\d+)-(?P<machine>[0-9a-f]{8})(?:[0-9a-f]{8})?\.tmp"  # suffix of temporary names
ORPHANED_AFTER = 24 * 3600.0  # seconds; writing a file never takes a day


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside a target, which is renamed to the target at the end and removed after an error.

    Temporary files that killed processes left of the same target are removed. A shared lock on the folder tells other
    processes that remove such files that the folder is in use.

    Args:
        target: The file; its folder is created if it is missing.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{_machine()}{secrets.token_hex(4)}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_orphans(target.parent, re.compile(rf"\.{re.escape(target.name)}{STAGED}"))
    with _lock(target.parent, alone=False):
        try:
            yield temporary
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_orphans(folder: Path, names: re.Pattern[str]) -> None:
    """Remove temporary files of processes that were killed.

    Args:
        folder: The folder.
        names: Pattern of the files to remove, with the groups of `STAGED`. A file is removed if its process on this
            machine is gone. A file of another machine is removed after a day if no process writes to the folder: age
            alone is not enough, as a clock may jump by more than a day.
    """
    matches = [(file, match) for file in folder.iterdir() if (match := names.fullmatch(file.name))]
    foreign = [file for file, match in matches if match.groupdict().get("machine") != _machine()]
    orphans = [file for file, match in matches if file not in foreign and _gone(int(match["pid"]))]
    if foreign:
        with _lock(folder, alone=True) as alone:
            _remove([*orphans, *(file for file in foreign if alone and _is_old(file))])
    else:
        _remove(orphans)


def _remove(files: list[Path]) -> None:
    for file in files:
        with contextlib.suppress(OSError):  # another process may remove it at the same time
            file.unlink()


def _is_old(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime > ORPHANED_AFTER
    except OSError:
        return False


@contextmanager
def _lock(folder: Path, alone: bool) -> Iterator[bool]:
    """Lock a folder, shared or exclusively; False if another process holds it or there are no such locks.

    This is `fcntl` and not `filelock`, which has no shared lock of a descriptor and would leave a file in the folders
    of users.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _gone(process: int) -> bool:
    if sys.platform == "win32":
        return False  # os.kill would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@functools.cache
def _machine() -> str:
    """Eight digits that identify the namespace of process numbers: machine, boot and container."""
    where = platform.node()
    with contextlib.suppress(OSError):  # without /proc, use only the name of the machine
        where += Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(where.encode("utf-8", "replace")).hexdigest()[:8]
