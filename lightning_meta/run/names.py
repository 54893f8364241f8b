"""Checks of the names of runs, which are names of folders on every system."""

from __future__ import annotations

import re

from lightning_meta.errors import UserError

LONGEST = 150  # bytes; file systems allow 255, and file names are derived from it
_FORBIDDEN = re.compile(r'[/\\<>:"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices on Windows


def refuse_name(option: str, name: str) -> None:
    """Refuse a name that is not the name of a single folder.

    Args:
        option: The option for messages, such as "--name".
        name: The name.

    Raises:
        UserError: The name is not valid; the message says which names are.
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
