"""Parts of figures: labels, titles, the chance level, rows of named tasks, and atomic writing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_meta.run.files import replacing

LONGEST = 28  # maximum number of characters of a name
LABELS = {
    "accuracy": "accuracy, %",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "f1": "F1",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
}
NAMED, THIN = 40, 0.25  # number of rows with a name if there are many tasks, and relative height of the other rows
DPI = 150


class About(NamedTuple):
    """Facts about a run that its figures show.

    Attributes:
        method: Name of the module's class; "" if it is unknown.
        conditions: Description of a test task, such as `5-way 1-shot`; "" if the tasks have names.
        chance: Accuracy of guessing, in [0, 1]; None if there is no chance level.
    """

    method: str = ""
    conditions: str = ""
    chance: float | None = None

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> About:
        """Read the facts in `results.json`; results of older versions have no conditions."""
        conditions = str(results.get("test_conditions") or "").partition(", chance")[0]
        chance = results.get("test_chance")
        return cls(
            str(results.get("model") or "").rpartition(".")[2],
            conditions,
            float(chance) if isinstance(chance, int | float) else None,
        )

    def title(self, what: str) -> str:
        """Return the title of a figure: the method, its tasks and what the figure shows.

        Args:
            what: Description of the figure's content, starting with a lower-case letter.
        """
        head = ", ".join(filter(None, (self.method, self.conditions)))
        return f"{head}: {what}" if head else what[:1].upper() + what[1:]


def shortened(name: str) -> str:
    """Shorten a name to `LONGEST` characters by leaving out its middle, since names often differ only at the end."""
    if len(name) <= LONGEST:
        return name
    half = (LONGEST - 1) // 2
    return f"{name[: LONGEST - 1 - half]}…{name[-half:]}"


def label_of(metric: str) -> str:
    """Return the readable name of a metric, with the unit in which it is drawn if it has one."""
    return LABELS.get(metric, metric.replace("_", " "))


def scale_of(metric: str) -> float:
    """Return the factor by which a metric is drawn: 100 for accuracies, which are in per cent, otherwise 1."""
    return 100.0 if metric == "accuracy" else 1.0


def draw_chance(axes: Axes, metric: str, chance: float | None, label: str = "chance") -> None:
    """Draw a line at the accuracy of guessing, in [0, 1], if the metric is the accuracy and there is a chance level."""
    if metric == "accuracy" and chance is not None:
        axes.axhline(100 * chance, color="0.5", ls=":", lw=1, label=f"{label}, {100 * chance:.3g} %")


def named_rows(tasks: int) -> np.ndarray:
    """Return which of T sorted rows have a name, `(T,)` bool: all, or with many tasks the first and the last ones."""
    named = np.ones(tasks, dtype=bool)
    if tasks > NAMED + 20:
        named[NAMED // 2 : -NAMED // 2] = False
    return named


def heights(named: np.ndarray) -> np.ndarray:
    """Return the heights at which rows are drawn, `(T,)`, by which have a name, `(T,)` bool; the others are thin."""
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


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure to a temporary file and rename it, so that a killed process leaves no incomplete figure."""
    with replacing(file, "wb") as out:
        figure.savefig(out, format=file.suffix.removeprefix(".").lower(), dpi=DPI)
