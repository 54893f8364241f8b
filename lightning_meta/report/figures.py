"""Figures of one run, drawn from the files in its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray
from scipy.special import stdtrit

from lightning_meta.errors import UserError
from lightning_meta.report.labels import About, draw_chance, label_of, scale_of
from lightning_meta.report.named_tasks import named_tasks_figure
from lightning_meta.report.saving import save_figure
from lightning_meta.run.tables import numbers_of, read_table

SIZE = (6.0, 4.0)  # inches
# Line styles and markers.
LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (5, 1)), "v"), ((0, (1, 1)), "P"))


@matplotlib.rc_context({"text.parse_math": False})  # names of tasks are text
def write_figures(directory: Path, results: Mapping[str, Any] | None = None) -> list[Path]:
    """Draw `figures/training.png` from `metrics.csv` and `figures/tasks.png` from `per_task.csv`, if these files exist.

    Args:
        directory: The run directory.
        results: Test metrics by name, and facts about the run; by default the content of `results.json`.

    Returns:
        The files of the figures.
    """
    folder = directory / "figures"
    if results is None:
        file = directory / "results.json"
        results = json.loads(file.read_text()) if file.is_file() else {}
    metric = next((m for m in ("accuracy", "mse", "r2") if f"test/{m}" in results), "accuracy")
    about = About.of(results)
    figures: dict[str, Figure | None] = {}
    if (directory / "metrics.csv").is_file():
        figures["training.png"] = _training(columns_of(directory / "metrics.csv"), metric, about)
    if (directory / "per_task.csv").is_file():
        columns = columns_of(directory / "per_task.csv", words=True)
        if "metric" in columns:  # a fixed set of tasks, each with a name
            figures["tasks.png"] = named_tasks_figure(columns, about.method)
        else:
            figures["tasks.png"] = _tasks(columns, metric, about)
    drawn = {folder / name: figure for name, figure in figures.items() if figure is not None}
    for target, figure in drawn.items():
        save_figure(figure, target)
    return list(drawn)


def columns_of(file: Path, words: bool = False) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file as numbers, by name; empty cells are NaN.

    Args:
        file: The file.
        words: Whether it is a table of tasks, in which a column, such as `task`, may contain text.

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


def _training(columns: dict[str, np.ndarray], metric: str, about: About) -> Figure | None:
    """Draw the training and validation metric against the step, with its 95 % interval over tasks shaded.

    Returns:
        The figure; None if the metric was not logged.
    """
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    scale = scale_of(metric)
    for name, stage, colour, marker in (
        (f"train/{metric}", "training", "0.65", "."),
        (f"val/{metric}", "validation", "k", "o"),
    ):
        if name in columns and (finite := np.isfinite(columns[name])).any():
            step, value = columns["step"][finite], scale * columns[name][finite]
            axes.plot(step, value, label=stage, color=colour, marker=marker, markersize=3)
            if (interval := columns.get(f"{name}_ci95")) is not None:
                low, high = band(value, scale * interval[finite])
                shade = "its 95 % interval over tasks" if np.isfinite(low).any() else None
                axes.fill_between(step, low, high, color="k", alpha=0.15, lw=0, label=shade)
    if not axes.lines:
        return None
    draw_chance(axes, metric, about.chance)
    axes.set(xlabel="training step", ylabel=label_of(metric), title=about.title("training"))
    if metric == "mse" and any((line.get_ydata() > 0).any() for line in axes.lines):  # type: ignore[operator,union-attr]
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    return figure


def band(value: np.ndarray, interval: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper end of intervals around values; NaN, which is not drawn, if they are not finite.

    Args:
        value: Values `(n,)`.
        interval: Half-widths of the intervals, `(n,)`.
    """
    interval = np.where(np.isfinite(interval), interval, np.nan)
    return value - interval, value + interval


def _tasks(columns: dict[str, np.ndarray], metric: str, about: About) -> Figure | None:
    """Draw the metric after each inner step with its 95 % interval; without inner steps, a histogram over tasks.

    Returns:
        The figure; None with fewer than two tasks whose scores are all finite.
    """
    scores = [c for name, c in columns.items() if name != "task" and c.dtype.kind == "f"]
    finite = np.all([np.isfinite(column) for column in scores], axis=0) if scores else np.zeros(0, bool)
    scale, tasks = scale_of(metric), int(finite.sum())
    scores = [scale * column[finite] for column in scores]
    if tasks < 2:
        return None
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    left_out = f", without {lost} not finite" if (lost := len(finite) - tasks) else ""
    if len(scores) > 1:
        steps, means = np.arange(len(scores)), np.array([s.mean() for s in scores])
        intervals = np.array([stdtrit(tasks - 1, 0.975) * s.std(ddof=1) / tasks**0.5 for s in scores])
        few = len(steps) <= 12
        style = {"marker": "o" if few else None, "ms": 4, "capsize": 3 if few else 0}
        axes.errorbar(steps, means, intervals, color="k", label="mean and 95 % interval", **style)  # type: ignore[arg-type]
        axes.set(xlabel="inner step", ylabel=label_of(metric))
        axes.set_title(about.title(f"adaptation on {tasks} test tasks{left_out}"))
        axes.xaxis.set_major_locator(FixedLocator(steps.tolist()) if few else MaxNLocator(integer=True))
        draw_chance(axes, metric, about.chance)
    else:
        axes.hist(scores[0], _edges(scores[0]).tolist(), color="0.65", edgecolor="k")
        mean = f"{scores[0].mean():.1f} %" if metric == "accuracy" else f"{scores[0].mean():.3g}"
        axes.axvline(scores[0].mean(), color="k", ls="--", label=f"mean {mean}")
        if metric == "accuracy" and about.chance is not None:
            axes.axvline(100 * about.chance, color="0.5", ls=":", label=f"chance {100 * about.chance:.3g} %")
        axes.set(xlabel=label_of(metric), ylabel="test tasks", title=about.title(f"{tasks} test tasks{left_out}"))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def _edges(scores: np.ndarray) -> np.ndarray:
    """Edges of about 20 histogram bins.

    If scores lie on a grid, such as the multiples of 1/Q for accuracies on Q queries, each bin covers the same number
    of possible scores.
    """
    values = np.unique(scores.round(6))
    steps = np.diff(values)
    grid = steps.min() if len(steps) else 1.0
    # If one score is very large, every number is a multiple of the grid up to rounding.
    dwarfed = len(steps) > 0 and values[-1] - values[0] > 1e6 * grid
    if len(steps) == 0 or dwarfed or not np.allclose(steps / grid, (steps / grid).round(), atol=1e-2):
        return np.histogram_bin_edges(scores, bins=20)
    width = grid * max(1, round((values[-1] - values[0]) / grid / 20))
    count = int(np.ceil((values[-1] - values[0] + grid / 2) / width)) or 1
    edges: NDArray[Any] = values[0] - grid / 2 + width * np.arange(count + 1)
    return edges
