"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning_meta.errors import UserError
from lightning_meta.staging import staging


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Write a file beside its target, and put it in the target's place once it is complete and on disk.

    Several may write to one target at once: the last to end wins.

    Args:
        path: The target; its folder is made where it is missing.
        mode: "w" for text, "wb" for bytes.

    Yields:
        The open file.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with staging(Path(path)) as staged, staged.open(mode, **text) as file:  # type: ignore[call-overload]
        yield file
        file.flush()
        os.fsync(file.fileno())


def check_writable(folder: Path) -> None:
    """Refuse a folder that no file can be written to, before anything is computed.

    Args:
        folder: It, or else the folder that it will be made in.

    Raises:
        UserError: What the system says.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); make it writable, or copy the run to a folder that is"
        ) from error
