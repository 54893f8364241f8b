"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
