"""Rows of a picture of named tasks: of many tasks the best and the worst have a name, the others are thin."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

NAMED, THIN = 40, 0.25  # rows with names in a picture of more tasks, and the height of the others


def named_rows(tasks: int) -> np.ndarray:
    """Which of T sorted rows have a name, `(T,)`: of many tasks the first and the last."""
    named = np.ones(tasks, dtype=bool)
    if tasks > NAMED + 20:
        named[NAMED // 2 : -NAMED // 2] = False
    return named


def heights(named: np.ndarray) -> np.ndarray:
    """The heights at which rows are drawn, `(T,)`; those without a name are thin."""
    steps = np.where(named | np.roll(named, 1), 1.0, THIN)
    return np.asarray(steps.cumsum() - 1)


def name_rows(axes: Axes, rows: np.ndarray, named: np.ndarray, names: list[str], file: str) -> None:
    """Write the names beside their rows.

    Args:
        axes: Where to.
        rows: Heights `(T,)`.
        named: Which of them have a name, `(T,)`.
        names: T names.
        file: The table that has the names of the others.
    """
    ticks, labels = list(rows[named]), [name for name, shown in zip(names, named, strict=True) if shown]
    if not named.all():
        ticks.append(float(rows[~named].mean()))
        labels.append(f"{(~named).sum()} more,\nby name in\n{file}")
    axes.set_yticks(ticks, labels, fontsize=8, parse_math=False)
    axes.set_ylim(-0.7, rows[-1] + 0.7)
