"""The CSV files of recorded task gradients in a run directory."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_meta.cells import as_cells
from lightning_meta.errors import UserError, reason_of
from lightning_meta.run.tables import read_table, write_table

PAIRS, SHARES = "gradient_conflict.csv", "gradient_share.csv"
COLUMNS = {PAIRS: ("step", "task_i", "task_j", "cosine", "affinity"), SHARES: ("step", "task", "norm", "share")}


def append_rows(file: Path, step: int, rows: Iterable[Sequence[Any]]) -> None:
    """Append the rows of a step in one write."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        writer.writerow(COLUMNS[file.name])
    writer.writerows([step, *as_cells(f"{v:.6g}" if isinstance(v, float) else v for v in row)] for row in rows)
    with file.open("a", encoding="utf-8", newline="") as target:
        target.write(text.getvalue())


def read_rows(file: Path) -> list[list[str]]:
    """Read the rows of a file, without an incomplete last one: the step, names of tasks, and two numbers.

    Raises:
        UserError: The file is damaged.
    """
    columns = COLUMNS[file.name]
    header, rows = read_table(file, columns)
    try:
        for step, *_, first, second in rows:
            int(step), float(first), float(second)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {reason_of(error, 100)}") from error
    if tuple(header) != columns:
        raise UserError(f"{file} is damaged: its columns are {','.join(columns)}")
    return rows


def cut_rows(file: Path, step: int) -> None:
    """Keep only the rows of earlier steps; does nothing if there is no file."""
    # The run repeats the steps after its checkpoint, and would record them twice.
    kept = [row for row in read_rows(file) if int(row[0]) < step] if file.is_file() else []
    if kept:
        write_table(file, [COLUMNS[file.name], *kept])
    else:
        file.unlink(missing_ok=True)


def gradient_shares(directory: str | Path) -> dict[str, float]:
    """Mean share of each task in the sum of gradient norms, over all measurements of a run.

    A task adds 0 to a measurement that it is absent from, so the shares sum to 1.

    Returns:
        The shares by name of the task; empty where `GradientConflict` recorded nothing.
    """
    shares: dict[str, list[float]] = defaultdict(list)
    file = Path(directory) / SHARES
    for _, name, _, share in read_rows(file) if file.is_file() else ():
        shares[name] += [] if math.isnan(float(share)) else [float(share)]
    return {name: sum(values) / len(values) if values else math.nan for name, values in shares.items()}


def mean_pairs(directory: Path) -> tuple[list[str], np.ndarray, dict[int, float]]:
    """Means of the recorded values of each pair of tasks, over the measurements with both tasks.

    Returns:
        The tasks; their mean cosines and affinities, `(2, T, T)`, NaN for two tasks that were never in a batch
        together; and by step the share of pairs in conflict.
    """
    names = list(dict.fromkeys(name for _, name, _, _ in read_rows(directory / SHARES)))
    place = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros((2, 2, len(names), len(names)))
    pairs: Counter[int] = Counter()
    conflicts: Counter[int] = Counter()
    for step, first, second, *values in read_rows(directory / PAIRS):
        if not {first, second} <= place.keys():
            raise UserError(
                f"{directory / PAIRS} is damaged: {SHARES} does not name the tasks {first!r} and {second!r}"
            )
        i, j = place[first], place[second]
        for k, value in enumerate(map(float, values)):
            if np.isfinite(value):
                sums[k, i, j] += value
                counts[k, i, j] += 1
        if i < j and np.isfinite(cosine := float(values[0])):
            pairs[int(step)] += 1
            conflicts[int(step)] += cosine < 0
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return names, means, {step: conflicts[step] / count for step, count in pairs.items()}
