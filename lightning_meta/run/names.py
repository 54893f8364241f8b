"""Names of runs, which become folders: the same on every system, and never outside the folder of all runs."""

from __future__ import annotations

import re

from lightning_meta.errors import UserError

LONGEST = 150  # bytes: file systems take 255, and names of files are made of it
_FORBIDDEN = re.compile(r'[/\\<>:"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices of Windows


def refuse_name(option: str, name: str) -> None:
    """Refuse a name that is not one plain folder.

    Args:
        option: How the user calls it, such as "--name".
        name: The name.

    Raises:
        UserError: What is wrong with it, and which names would do.
    """
    if wrong := _wrong(name):
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        raise UserError(f"{option}: {shown!r} {wrong}; letters, digits, '_', '-' and '.' make a name")


def _wrong(name: str) -> str:
    if not name.strip():
        return "is empty"
    if name in (".", "..") or _FORBIDDEN.search(name):
        return "is not the name of one folder"
    if not name.isprintable():
        return "has characters that cannot be shown"
    if len(name.encode("utf-8", "replace")) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a space, or ends with a dot"
    return "is a device of Windows" if _RESERVED.fullmatch(name) else ""
