"""Write the transfer report to a folder."""

from __future__ import annotations

from pathlib import Path

from lightning_meta.errors import UserError
from lightning_meta.report.transfer.figures import draw_forest, draw_gap
from lightning_meta.report.transfer.files import write_csv, write_json
from lightning_meta.report.transfer.results import TransferReport

FILES = ("transfer.csv", "transfer.json", "forest.png", "gap.png")


def write_report(report: TransferReport, folder: str | Path) -> Path:
    """Write `transfer.csv`, `transfer.json`, `forest.png` and `gap.png`.

    Args:
        report: The comparison.
        folder: Folder to write to; created if it does not exist.

    Returns:
        The folder.

    Raises:
        UserError: The folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for write, name in zip((write_csv, write_json, draw_forest, draw_gap), FILES, strict=True):
            write(report, folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}); name another folder") from error
    return folder
