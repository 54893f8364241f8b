"""A figure of a fixed set of tasks: the score of each in training, validation and testing."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_meta.report.labels import About, label_of, scale_of, shortened
from lightning_meta.report.rows import heights, name_rows, named_rows

WIDTH, ROW, MARGIN = 6.0, 0.2, 1.3  # inches: width of the figure, height of a row, rest of the height of a panel


def named_tasks_figure(columns: dict[str, np.ndarray], method: str = "") -> Figure | None:
    """Draw a panel for each metric with one row per task, the best test score on top.

    The line from the test to the training score of a task is its generalisation gap.

    Args:
        columns: Columns of `per_task.csv` by name.
        method: Name of the method, for the title.

    Returns:
        The figure; None without tasks.
    """
    metrics = list(dict.fromkeys(columns["metric"].tolist()))
    if not metrics:
        return None
    panels = [{name: column[columns["metric"] == metric] for name, column in columns.items()} for metric in metrics]
    sizes = [MARGIN + ROW * max(heights(named_rows(len(panel["task"])))[-1] + 1, 6) for panel in panels]
    figure = Figure((WIDTH, sum(sizes)), layout="constrained")
    axes = figure.subplots(len(panels), height_ratios=sizes, squeeze=False)[:, 0]
    for panel, metric, panel_axes in zip(panels, metrics, axes, strict=True):
        _draw(panel_axes, panel, str(metric))
    tasks = len(columns["task"])
    figure.suptitle(About(method).title(f"{tasks} task{'s' if tasks > 1 else ''} (number of training examples)"))
    axes[0].legend(frameon=False, loc="best", fontsize=8)
    return figure


def _draw(axes: Axes, columns: dict[str, np.ndarray], metric: str) -> None:
    """Draw the rows of the tasks with the same metric.

    Args:
        axes: Axes of the panel.
        columns: Columns of `per_task.csv` for these tasks.
        metric: Name of the metric.
    """
    scale = scale_of(metric)
    scores = {stage: scale * np.asarray(columns[stage], float) for stage in ("train", "val", "test")}
    better = columns.get("better", np.array([]))
    sign = np.where(better == "lower", -1, 1) if len(better) else 1
    order = np.argsort(np.nan_to_num(sign * scores["test"], nan=-np.inf))
    low, named = -1.0 if metric == "r2" else 0.0, named_rows(len(order))
    rows = heights(named)

    # +∞ is not drawn; scores below `low`, including −∞, are drawn at it.
    def shown(values: np.ndarray) -> np.ndarray:
        return np.maximum(np.where(values == np.inf, np.nan, values)[order], low)

    axes.hlines(rows, shown(scores["test"]), shown(scores["train"]), color="0.75", lw=1, zorder=1)
    marks = [("training", "train", "|", "0.4"), ("validation", "val", "o", "white"), ("test", "test", "o", "k")]
    for label, stage, marker, face in marks:
        for large in (True, False):  # thin rows have small markers
            if (here := named == large).any():
                style = {"mfc": face, "mec": "k", "ms": 5 if large else 2.5, "mew": 0.8 if large else 0.5, "zorder": 2}
                axes.plot(shown(scores[stage])[here], rows[here], marker, label=label if large else None, **style)  # type: ignore[arg-type]
    constant = scale * np.asarray(columns["constant"], float) if "constant" in columns else np.full(len(order), np.nan)
    if np.isfinite(constant).any():
        label = "the best constant prediction"
        axes.plot(shown(constant), rows, "x", color="0.55", ms=4, mew=0.8, label=label, zorder=1.5)
    examples = np.asarray(columns["train_examples"], float)[order]
    names = [f"{shortened(name)} ({count:.0f})" for name, count in zip(columns["task"][order], examples, strict=True)]
    name_rows(axes, rows, named, names, "per_task.csv")
    below = f", below {low:g} drawn there" if any((values < low).any() for values in scores.values()) else ""
    axes.set_xlabel(label_of(metric) + below)
