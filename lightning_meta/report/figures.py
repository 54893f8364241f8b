"""Pictures of one run, drawn from the files in its directory alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray
from scipy.special import stdtrit

from lightning_meta.errors import UserError
from lightning_meta.report.named_tasks import draw_named_tasks
from lightning_meta.report.saving import save_figure
from lightning_meta.run.tables import numbers_of, read_table

SIZE = (6.0, 4.0)  # inches
LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (5, 1)), "v"), ((0, (1, 1)), "P"))  # and their markers
LONGEST = 28  # letters of a name
LABELS = {"accuracy": "accuracy", "mse": "mean squared error", "r2": "R²"}


@matplotlib.rc_context({"text.parse_math": False})  # names of tasks are text
def write_figures(directory: Path, logged: Mapping[str, Any] | None = None) -> list[Path]:
    """Draw `figures/training.png` from `metrics.csv` and `figures/tasks.png` from `per_task.csv`, where they are there.

    Args:
        directory: The run directory.
        logged: The results by name; by default those of `results.json`.

    Returns:
        The pictures drawn.
    """
    folder = directory / "figures"
    drawn = []
    results = directory / "results.json"
    if logged is None:
        logged = json.loads(results.read_text()) if results.is_file() else {}
    metric = next((m for m in LABELS if f"test/{m}" in logged), "accuracy")
    pictures = (("metrics.csv", "training.png", _draw_training), ("per_task.csv", "tasks.png", _draw_tasks))
    for source, name, draw in pictures:
        if (directory / source).is_file():
            columns = columns_of(directory / source, words=source == "per_task.csv")
            fixed = "metric" in columns and source == "per_task.csv"  # a fixed set of tasks, each with a name
            height = max(SIZE[1], 1.2 + 0.16 * len(columns["task"])) if fixed else SIZE[1]
            figure = Figure((SIZE[0], height), layout="constrained")
            drawing = draw_named_tasks if fixed else draw
            if drawing(figure.subplots(), columns, metric):
                save_figure(figure, folder / name)
                drawn.append(folder / name)
    return drawn


def columns_of(file: Path, words: bool = False) -> dict[str, np.ndarray]:
    """The columns of a CSV file by name, as numbers; NaN where there is none.

    Args:
        file: The file.
        words: Whether it is a table of tasks, where a column may hold words, as `task` does.

    Raises:
        UserError: The file is damaged.
    """
    header, rows = read_table(file, ["task" if words else "step"])
    return {name: _column(file, name, [row[i] for row in rows], words) for i, name in enumerate(header)}


def _column(file: Path, name: str, values: list[str], words: bool) -> np.ndarray:
    if words and name == "task":
        return np.array(values)
    try:
        return np.array(numbers_of(file, name, values))
    except UserError:
        if words:
            return np.array(values)
        raise


def _draw_training(axes: Axes, columns: dict[str, np.ndarray], metric: str) -> bool:
    """The metric in training and validation against the step; the shade is the 95 % interval over tasks."""
    for name, colour, marker in ((f"train/{metric}", "0.65", "."), (f"val/{metric}", "k", "o")):
        if name in columns and (there := np.isfinite(columns[name])).any():
            step, value = columns["step"][there], columns[name][there]
            axes.plot(step, value, label=name, color=colour, marker=marker, markersize=3)
            if (interval := columns.get(f"{name}_ci95")) is not None:
                low, high = band(value, interval[there])
                axes.fill_between(step, low, high, color="k", alpha=0.15, lw=0)
    shade = "; shade: 95 % interval" if axes.collections else ""
    axes.set(xlabel="training step", ylabel=label_of(metric), title=f"Training{shade}")
    if metric == "mse" and any((line.get_ydata() > 0).any() for line in axes.lines):  # type: ignore[operator,union-attr]
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if axes.lines:
        axes.legend(frameon=False)
    return bool(axes.lines)


def band(value: np.ndarray, interval: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The borders of an interval around values; NaN where it is not finite, which is not drawn."""
    interval = np.where(np.isfinite(interval), interval, np.nan)
    return value - interval, value + interval


def _draw_tasks(axes: Axes, columns: dict[str, np.ndarray], metric: str) -> bool:
    """The adaptation curve over inner steps with its 95 % interval; without inner steps, the spread over tasks."""
    scores = [c for name, c in columns.items() if name != "task" and c.dtype.kind == "f"]
    finite = np.all([np.isfinite(column) for column in scores], axis=0) if scores else np.zeros(0, bool)
    scores, tasks = [column[finite] for column in scores], int(finite.sum())
    if tasks < 2:
        return False
    left_out = f", without {lost} not finite" if (lost := len(finite) - tasks) else ""
    if len(scores) > 1:
        steps, means = np.arange(len(scores)), np.array([s.mean() for s in scores])
        intervals = np.array([stdtrit(tasks - 1, 0.975) * s.std(ddof=1) / tasks**0.5 for s in scores])
        few = len(steps) <= 12
        axes.errorbar(steps, means, intervals, color="k", marker="o" if few else None, ms=4, capsize=3 if few else 0)
        title = f"Adaptation: mean and 95 % interval over {tasks} test tasks{left_out}"
        axes.set(xlabel="inner step", ylabel=label_of(metric), title=title)
        axes.xaxis.set_major_locator(FixedLocator(steps.tolist()) if few else MaxNLocator(integer=True))
    else:
        axes.hist(scores[0], _edges(scores[0]).tolist(), color="0.65", edgecolor="k")
        axes.axvline(scores[0].mean(), color="k", ls="--", label=f"mean {scores[0].mean():.3f}")
        axes.set(xlabel=label_of(metric), ylabel="test tasks", title=f"{tasks} test tasks{left_out}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    return True


def _edges(scores: np.ndarray) -> np.ndarray:
    """Borders of some 20 bins; where few scores are possible, as shares of Q queries are, as many of them in each."""
    values = np.unique(scores.round(6))
    steps = np.diff(values)
    grid = steps.min() if len(steps) else 1.0
    # Where one score dwarfs the others, rounding makes every number a multiple of the grid.
    dwarfed = len(steps) > 0 and values[-1] - values[0] > 1e6 * grid
    if len(steps) == 0 or dwarfed or not np.allclose(steps / grid, (steps / grid).round(), atol=1e-2):
        return np.histogram_bin_edges(scores, bins=20)
    width = grid * max(1, round((values[-1] - values[0]) / grid / 20))
    count = int(np.ceil((values[-1] - values[0] + grid / 2) / width)) or 1
    edges: NDArray[Any] = values[0] - grid / 2 + width * np.arange(count + 1)
    return edges


def shortened(name: str) -> str:
    """A name that leaves room for the picture: of a long one the beginning and the end, which tell it from others."""
    if len(name) <= LONGEST:
        return name
    half = (LONGEST - 1) // 2
    return f"{name[: LONGEST - 1 - half]}…{name[-half:]}"


def label_of(metric: str) -> str:
    """A metric's name as a person would write it."""
    return LABELS.get(metric, metric)
