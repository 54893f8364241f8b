"""A picture of a fixed set of tasks: what each reached in training, validation and testing."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes


def draw_named_tasks(axes: Axes, columns: dict[str, np.ndarray], metric: str) -> bool:
    """One row a task, the best on top; the line from test to train is the generalisation gap.

    Args:
        axes: Where to.
        columns: Those of `per_task.csv`.
        metric: Where every task has the same, its name.
    """
    metrics = set(columns["metric"].tolist())
    scores = {stage: np.asarray(columns[stage], float) for stage in ("train", "val", "test")}
    better = columns.get("better", np.array([]))
    sign = np.where(better == "lower", -1, 1) if len(better) else 1
    order = np.argsort(np.nan_to_num(sign * scores["test"], nan=-np.inf))
    low, rows = -1.0 if "r2" in metrics else 0.0, np.arange(len(order))
    shown = {
        stage: np.maximum(np.where(values == np.inf, np.nan, values)[order], low) for stage, values in scores.items()
    }
    axes.hlines(rows, shown["test"], shown["train"], color="0.75", lw=1, zorder=1)
    for stage, marker, face in (("train", "|", "0.4"), ("val", "o", "white"), ("test", "o", "k")):
        axes.plot(shown[stage], rows, marker, mfc=face, mec="k", ms=5, mew=0.8, label=stage, zorder=2)
    examples = np.asarray(columns["train_examples"], float)[order]
    labels = [f"{name} ({count:.0f})" for name, count in zip(columns["task"][order], examples, strict=True)]
    axes.set_yticks(rows, labels, fontsize=7 if len(rows) > 25 else 8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    named = {"r2": "R²", "auroc": "AUROC", "f1": "F1"}
    label = named.get(only := next(iter(metrics)), str(only).replace("_", " ")) if len(metrics) == 1 else "score"
    below = f", below {low:g} drawn there" if any((v < low).any() for v in scores.values()) else ""
    axes.set(xlabel=label + below, title="Tasks (number of training examples)")
    axes.legend(frameon=False, loc="best", fontsize=8)
    return len(rows) > 0
