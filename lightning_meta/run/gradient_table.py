"""What is recorded of the tasks' gradients, as files of the run directory."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_meta.run.files import replacing

PAIRS, SHARES = "gradient_conflict.csv", "gradient_share.csv"
COLUMNS = {PAIRS: ("step", "task_i", "task_j", "cosine", "affinity"), SHARES: ("step", "task", "norm", "share")}


def append_rows(file: Path, step: int, rows: Iterable[Sequence[Any]]) -> None:
    """Add the rows of a step in one write."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        writer.writerow(COLUMNS[file.name])
    writer.writerows([step, *(f"{v:.6g}" if isinstance(v, float) else v for v in row)] for row in rows)
    with file.open("a", encoding="utf-8", newline="") as target:
        target.write(text.getvalue())


def _read(file: Path, columns: int) -> Iterator[list[str]]:
    """The rows of a file without its header, and without a last one that a kill tore."""
    with file.open(encoding="utf-8", newline="") as rows:
        reader = csv.reader(rows)
        next(reader, None)
        yield from (row for row in reader if len(row) == columns)


def cut_rows(file: Path, step: int) -> None:
    """Keep the rows of the steps before this one; no file where there is none."""
    if not file.is_file():
        return
    kept = [row for row in _read(file, len(COLUMNS[file.name])) if int(row[0]) < step]
    if not kept:
        file.unlink()
        return
    with replacing(file) as target:
        csv.writer(target).writerows([COLUMNS[file.name], *kept])


def gradient_shares(directory: str | Path) -> dict[str, float]:
    """The mean share of each task in the sum of the gradients' norms, over all measurements of a run.

    A task adds 0 to a measurement that it is absent from, so the shares sum to 1.

    Args:
        directory: The run directory.

    Returns:
        The shares by name of the task; empty where `GradientConflict` recorded nothing.
    """
    shares: dict[str, list[float]] = defaultdict(list)
    file = Path(directory) / SHARES
    for _, name, _, share in _read(file, len(COLUMNS[SHARES])) if file.is_file() else ():
        shares[name] += [] if math.isnan(float(share)) else [float(share)]
    return {name: sum(values) / len(values) if values else math.nan for name, values in shares.items()}
