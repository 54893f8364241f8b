"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lightning_meta.staging import staging

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Draw a figure into a file, whole or not at all; a link in its place is replaced, and not followed.

    Args:
        figure: What to draw.
        path: The target, whose suffix is the format.
        dpi: Dots an inch.
    """
    with replacing(path, "wb") as file:
        figure.savefig(file, dpi=dpi, format=path.suffix.removeprefix("."))
