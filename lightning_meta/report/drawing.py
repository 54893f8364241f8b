"""Parts of figures: labels, titles, the chance level, rows of named tasks, and atomic writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
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
SIZE = (6.0, 4.0)  # inches
NAMED, THIN = 40, 0.25  # number of rows with a name if there are many tasks, and relative height of the other rows
DPI = 150

plain_text = matplotlib.rc_context({"text.parse_math": False})
"""Context in which names of tasks, classes and runs are drawn as they are, even with dollar signs."""


class About(NamedTuple):
    """Facts about a run that its figures show."""

    method: str = ""  # name of the module's class
    conditions: str = ""  # description of a test task, such as `5-way 1-shot`; "" if the tasks have names
    chance: float | None = None  # accuracy of guessing, in [0, 1]

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> About:
        """Read the facts in `results.json`."""
        conditions = str(results.get("test_conditions") or "").partition(", chance")[0]
        chance = results.get("test_chance")
        method = str(results.get("model") or "").rpartition(".")[2]
        return cls(method, conditions, float(chance) if isinstance(chance, int | float) else None)

    def title(self, what: str) -> str:
        """Return the title of a figure: the method, its tasks and what the figure shows, in lower case."""
        head = ", ".join(filter(None, (self.method, self.conditions)))
        return f"{head}: {what}" if head else what[:1].upper() + what[1:]


def shortened(name: str) -> str:
    """Shorten a printable name to `LONGEST` characters by leaving out its middle, as names often differ at the end."""
    name = printable(name)
    if len(name) <= LONGEST:
        return name
    half = (LONGEST - 1) // 2
    return f"{name[: LONGEST - 1 - half]}…{name[-half:]}"


def printable(name: str) -> str:
    """Return a text without control characters."""
    return "".join(c if c.isprintable() else "?" for c in name)


def label_of(metric: str) -> str:
    """Return the readable name of a metric, with the unit in which it is drawn if it has one."""
    return LABELS.get(metric, metric.replace("_", " "))


def scale_of(metric: str) -> float:
    """Return the factor by which a metric is drawn: 100 for accuracies, which are in per cent, otherwise 1."""
    return 100.0 if metric == "accuracy" else 1.0


def number_of(count: int, what: str) -> str:
    """Return a number with its noun, such as `3 tasks`."""
    return f"{count} {what}{'s' * (count != 1)}"


def panel(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Make a figure of a size in inches with one panel."""
    figure = Figure(size, layout="constrained")
    return figure, figure.subplots()


def draw_chance(axes: Axes, metric: str, chance: float | None, label: str = "chance", upright: bool = False) -> None:
    """Draw a line at the accuracy of guessing, in [0, 1], if the metric is the accuracy and there is a chance level."""
    if metric == "accuracy" and chance is not None:
        line = axes.axvline if upright else axes.axhline
        line(100 * chance, color="0.5", ls=":", lw=1, label=f"{label}, {100 * chance:.3g} %")


def place_rows(tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the heights of T sorted rows, and which have a name: with many tasks only the first and the last ones."""
    named = np.ones(tasks, dtype=bool)
    if tasks > NAMED + 20:
        named[NAMED // 2 : -NAMED // 2] = False
    return np.where(named | np.roll(named, 1), 1.0, THIN).cumsum() - 1, named


def name_rows(axes: Axes, names: Sequence[str], file: str) -> None:
    """Label the rows of `place_rows` that have a name; the others are in a file."""
    rows, named = place_rows(len(names))
    ticks, labels = list(rows[named]), [name for name, has_name in zip(names, named, strict=True) if has_name]
    if not named.all():
        ticks.append(float(rows[~named].mean()))
        labels.append(f"{(~named).sum()} more,\nby name in\n{file}")
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(-0.7, rows[-1] + 0.7)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure to a temporary file and rename it, so that a killed process leaves no incomplete figure."""
    with replacing(file, "wb") as out:
        figure.savefig(out, format=file.suffix.removeprefix(".").lower(), dpi=DPI)
