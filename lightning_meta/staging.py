"""A file is written beside its target under a name of its own, and renamed once it is whole."""

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

STAGED = r"\.(?P<pid>\d+)-(?P<machine>[0-9a-f]{8})(?:[0-9a-f]{8})?\.tmp"  # the end of a name that is made here
ORPHANED_AFTER = 24 * 3600.0  # seconds; nothing takes a day to write


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A name beside a target to write to: renamed to the target at the end, removed after an error.

    What killed processes left of the same target is removed; no other file is touched. A shared lock on the folder
    says to those who remove that somebody is writing.

    Args:
        target: The file; its folder is made where it is missing.
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
    """Remove what killed processes left behind.

    Args:
        folder: Where.
        names: Of what may be removed: once its process, as `STAGED` finds it in the name, is gone. Where that cannot be
            asked, after a day in a folder that nobody writes to: a clock may jump by more than a day.
    """
    named = [(file, found) for file in folder.iterdir() if (found := names.fullmatch(file.name))]
    foreign = [file for file, found in named if found.groupdict().get("machine") != _machine()]
    orphans = [file for file, found in named if file not in foreign and _gone(int(found["pid"]))]
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
    """Hold a folder, with others or alone; False where it is held by others, or the system has no such locks."""
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
        return False  # to ask there is to end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@functools.cache
def _machine() -> str:
    """Eight digits for where a process number means something: this machine, since it started, in this container."""
    where = platform.node()
    with contextlib.suppress(OSError):  # where there is no /proc, the name has to do
        where += Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(where.encode("utf-8", "replace")).hexdigest()[:8]
