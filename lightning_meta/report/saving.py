"""Atomic writing of figures."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lightning_meta.run.files import replacing

DPI = 150


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure to a temporary file and rename it, so that a killed process leaves no incomplete figure.

    Args:
        figure: The figure.
        file: File to write, in the format of its suffix; its folder is created if it does not exist.
    """
    with replacing(file, "wb") as out:
        figure.savefig(out, format=file.suffix.removeprefix(".").lower(), dpi=DPI)
