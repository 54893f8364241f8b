"""Rows in figures of named tasks: with many tasks, only the best and the worst have a name, and the others are thin."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

NAMED, THIN = 40, 0.25  # number of rows with a name if there are many tasks, and relative height of the other rows


def named_rows(tasks: int) -> np.ndarray:
    """Return which of T sorted rows have a name, `(T,)` bool: all, or with many tasks the first and the last ones."""
    named = np.ones(tasks, dtype=bool)
    if tasks > NAMED + 20:
        named[NAMED // 2 : -NAMED // 2] = False
    return named


def heights(named: np.ndarray) -> np.ndarray:
    """Return the heights at which rows are drawn, `(T,)`; rows without a name are thin.

    Args:
        named: Which rows have a name, `(T,)` bool.
    """
    steps = np.where(named | np.roll(named, 1), 1.0, THIN)
    return np.asarray(steps.cumsum() - 1)


def name_rows(axes: Axes, rows: np.ndarray, named: np.ndarray, names: list[str], file: str) -> None:
    """Label the rows that have a name.

    Args:
        axes: Axes of the panel.
        rows: Heights of the rows, `(T,)`.
        named: Which rows have a name, `(T,)` bool.
        names: Names of all T tasks, in the order of the rows.
        file: Name of the table with the names of the other tasks.
    """
    ticks, labels = list(rows[named]), [name for name, has_name in zip(names, named, strict=True) if has_name]
    if not named.all():
        ticks.append(float(rows[~named].mean()))
        labels.append(f"{(~named).sum()} more,\nby name in\n{file}")
    axes.set_yticks(ticks, labels, fontsize=8, parse_math=False)
    axes.set_ylim(-0.7, rows[-1] + 0.7)
