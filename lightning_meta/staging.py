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

    What killed processes left of the same target is removed; no other file is touched.

    Args:
        target: The file; its folder is made where it is missing.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{_machine()}{secrets.token_hex(4)}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_orphans(target.parent, re.compile(rf"\.{re.escape(target.name)}{STAGED}"))
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
        names: Of what may be removed: once its process, as `STAGED` finds it in the name, is gone, else after a day.
    """
    for file in folder.iterdir():
        if (found := names.fullmatch(file.name)) and _orphaned(file, found):
            with contextlib.suppress(OSError):  # another process may remove it at the same time
                file.unlink()


def _orphaned(file: Path, found: re.Match[str]) -> bool:
    parts = found.groupdict()
    if parts.get("machine") == _machine() and _gone(int(parts["pid"])):
        return True
    try:
        return time.time() - file.stat().st_mtime > ORPHANED_AFTER
    except OSError:
        return False


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
