"""Files that a command would replace: only when it is told to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from jsonargparse import ArgumentParser

from lightning_meta.errors import UserError


def add_overwrite(parser: ArgumentParser) -> None:
    """Add the option `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="Replace files that are there already.")


def refuse_existing(option: str, files: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace a file, before anything is computed.

    Args:
        option: The option that names the files, such as "--out".
        files: What would be written.
        overwrite: Whether the user gave `--overwrite`.

    Raises:
        UserError: One of the files is there.
    """
    for file in files:
        # Also a link that leads nowhere; of a folder the command itself says that it is no file.
        if not overwrite and os.path.lexists(file) and not file.is_dir():
            raise UserError(f"{option}: {file} is there already; name another, or give --overwrite to replace it")
