"""How a picture is written: whole or not at all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lightning_meta.run.files import replacing

DPI = 150


def save_figure(figure: Figure, file: Path) -> None:
    """Write a picture beside its target, then rename it: a process that is killed leaves no half of one.

    Args:
        figure: The picture.
        file: Where to, in the format of its suffix; the folder is made where it is missing.
    """
    with replacing(file, "wb") as out:
        figure.savefig(out, format=file.suffix.removeprefix(".").lower(), dpi=DPI)
