"""Numbers and names as people read them."""

from __future__ import annotations

import math

MARKS = {
    "helped": "▲ helped",
    "hurt": "▼ hurt",
    "no difference shown": "no difference shown",
    "too few seeds": "too few seeds",
    "not comparable": "not comparable",
}


def printable(name: str) -> str:
    """A task's or method's name without characters that steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in name)


def metric_text(metric: str, value: float) -> str:
    """A metric in its unit: accuracy in per cent, others as they are; "–" where it is unknown."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.3f}"


def change_text(metric: str, value: float) -> str:
    """A difference with its sign: accuracy in percentage points, others as they are."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:+.1f}" if metric == "accuracy" else f"{value:+.3f}"


def unit(metrics: set[str]) -> str:
    """The unit of differences of these metrics."""
    names = {
        "accuracy": "percentage points of accuracy",
        "r2": "R²",
        "auroc": "AUROC",
        "f1": "F1",
        "rmse": "root mean squared error",
        "mae": "mean absolute error",
    }
    return " or ".join(names.get(m, m.replace("_", " ")) for m in sorted(metrics))
