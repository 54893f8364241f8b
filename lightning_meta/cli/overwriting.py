"""Refuse to replace existing files without `--overwrite`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from jsonargparse import ArgumentParser

from lightning_meta.errors import UserError


def add_overwrite(parser: ArgumentParser) -> None:
    """Add the option `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="Replace existing files.")


def refuse_existing(option: str, files: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace a file; called before anything is computed.

    Args:
        option: The option that names the files, such as "--out".
        files: The files to be written.
        overwrite: The value of `--overwrite`.

    Raises:
        UserError: One of the files exists.
    """
    for file in files:
        # `lexists` includes broken links. A folder is refused by the command itself.
        if not overwrite and os.path.lexists(file) and not file.is_dir():
            raise UserError(f"{option}: {file} already exists; name another, or give --overwrite to replace it")
