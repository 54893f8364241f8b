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
from matplotlib.ticker import MaxNLocator

from lightning_meta.errors import UserError
from lightning_meta.report.named_tasks import draw_named_tasks
from lightning_meta.report.saving import save_figure
from lightning_meta.run.cells import read_table

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
            columns = columns_of(directory / source)
            fixed = "metric" in columns and source == "per_task.csv"  # a fixed set of tasks, each with a name
            height = max(SIZE[1], 1.2 + 0.16 * len(columns["task"])) if fixed else SIZE[1]
            figure = Figure((SIZE[0], height), layout="constrained")
            drawing = draw_named_tasks if fixed else draw
            if drawing(figure.subplots(), columns, metric):
                save_figure(figure, folder / name)
                drawn.append(folder / name)
    return drawn


def columns_of(file: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file by name: numbers, NaN where there is none, or words.

    Raises:
        UserError: It is damaged.
    """
    header, *rows = read_table(file) or [[]]
    rows = [row for row in rows if row]
    if any(len(row) > len(header) for row in rows):
        raise UserError(f"{file} is damaged: a row has more values than there are columns")
    rows = [row + [""] * (len(header) - len(row)) for row in rows]  # a kill may have torn the last one
    names = "task" if "metric" in header else None  # a name may be a number, and keeps its digits
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header) if rows}
    return {name: np.array(cells) if name == names else _numbers(cells) for name, cells in columns.items()}


def _numbers(column: list[str]) -> np.ndarray:
    """A column as numbers, or as it is where it holds names."""
    try:
        return np.array([float(value or "nan") for value in column])
    except ValueError:
        return np.array(column)


def _draw_training(axes: Axes, columns: dict[str, np.ndarray], metric: str) -> bool:
    """The metric in training and validation against the step; the shade is the 95 % interval over tasks."""
    for name, colour, marker in ((f"train/{metric}", "0.65", "."), (f"val/{metric}", "k", "o")):
        if name in columns:
            there = np.isfinite(columns[name])
            step, value = columns["step"][there], columns[name][there]
            axes.plot(step, value, label=name, color=colour, marker=marker, markersize=3)
            if (interval := columns.get(f"{name}_ci95")) is not None:
                axes.fill_between(step, value - interval[there], value + interval[there], color="k", alpha=0.15, lw=0)
    shade = "; shade: 95 % interval" if axes.collections else ""
    axes.set(xlabel="training step", ylabel=label_of(metric), title=f"Training{shade}")
    if metric == "mse":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if axes.lines:
        axes.legend(frameon=False)
    return bool(axes.lines)


def _draw_tasks(axes: Axes, columns: dict[str, np.ndarray], metric: str) -> bool:
    """The adaptation curve over inner steps with its 95 % interval; without inner steps, the spread over tasks."""
    scores = [columns[name] for name in columns if name != "task"]
    tasks = len(columns["task"]) if scores else 0
    if tasks < 2:
        return False
    if len(scores) > 1:
        steps, means = np.arange(len(scores)), np.array([s.mean() for s in scores])
        intervals = np.array([1.96 * s.std(ddof=1) / tasks**0.5 for s in scores])
        axes.errorbar(steps, means, intervals, color="k", marker="o", ms=4, capsize=3)
        title = f"Adaptation: mean and 95 % interval over {tasks} test tasks"
        axes.set(xlabel="inner step", ylabel=label_of(metric), title=title)
        axes.set_xticks(steps)
    else:
        axes.hist(scores[0], _edges(scores[0]).tolist(), color="0.65", edgecolor="k")
        axes.axvline(scores[0].mean(), color="k", ls="--", label=f"mean {scores[0].mean():.3f}")
        axes.set(xlabel=label_of(metric), ylabel="test tasks", title=f"{tasks} test tasks")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    return True


def _edges(scores: np.ndarray) -> np.ndarray:
    """Borders of some 20 bins; where few scores are possible, as shares of Q queries are, as many of them in each."""
    values = np.unique(scores.round(6))
    steps = np.diff(values)
    grid = steps.min() if len(steps) else 1.0
    if len(steps) == 0 or not np.allclose(steps / grid, (steps / grid).round(), atol=1e-2):
        return np.histogram_bin_edges(scores, bins=20)
    width = grid * max(1, round((values[-1] - values[0]) / grid / 20))
    count = int(np.ceil((values[-1] - values[0] + grid / 2) / width)) or 1
    return values[0] - grid / 2 + width * np.arange(count + 1)


def shortened(name: str) -> str:
    """A name that leaves room for the picture: of a long one the beginning and the end, which tell it from others."""
    if len(name) <= LONGEST:
        return name
    half = (LONGEST - 1) // 2
    return f"{name[: LONGEST - 1 - half]}…{name[-half:]}"


def label_of(metric: str) -> str:
    """A metric's name as a person would write it."""
    return LABELS.get(metric, metric)
