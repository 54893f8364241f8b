"""Atomic writes: a file is either complete or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning_meta.errors import UserError
from lightning_meta.staging import staging


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Write to a temporary file, which replaces the target when it is complete and on disk.

    If several processes write the same target, the last one to finish wins.

    Args:
        path: The target; its folder is created if it is missing.
        mode: "w" for text, "wb" for bytes.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with staging(Path(path)) as staged, staged.open(mode, **text) as file:  # type: ignore[call-overload]
        yield file
        file.flush()
        os.fsync(file.fileno())


def check_target(path: Path, suffixes: Collection[str] = (), option: str = "") -> None:
    """Check before a computation that a path can name an output file.

    Args:
        path: The path.
        suffixes: The accepted suffixes; by default all.
        option: The option that sets the path, for messages.
    """
    named = f"{option} {path}".lstrip()
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"{named}: expected a file that ends in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{named}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{named}: this is a folder; name a file in it")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise UserError(f"{named}: the folder cannot be written to ({error.strerror}); name another") from error


def check_writable(folder: Path) -> None:
    """Check before a computation that files can be written to a folder, which may not exist yet.

    Raises:
        UserError: The folder, or its nearest existing parent, is not writable.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); make it writable, or copy the run to a folder that is"
        ) from error
