"""The short table at the end of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

CURVE = re.compile(r"test/(accuracy|mse)_step_(\d+)")


def print_summary(metrics: Mapping[str, float], directory: Path) -> None:
    """Print the test score with its 95 % interval, the number of tasks, the adaptation curve and the directory.

    Args:
        metrics: What was logged in testing, by name.
        directory: The run directory.
    """
    table = Table("test", "", title=None, show_header=False)
    for metric in ("accuracy", "mse"):
        if (score := metrics.get(f"test/{metric}")) is not None:
            interval = metrics.get(f"test/{metric}_ci95", float("nan"))
            table.add_row(f"test {metric}", f"{_shown(metric, score)} ± {_shown(metric, interval)} (95 %)")
    if (median := metrics.get("test/mse_median")) is not None:
        table.add_row("test mse, median", _shown("mse", median))
    if (tasks := metrics.get("test/tasks")) is not None:
        table.add_row("tasks", f"{tasks:.0f}")
    steps = sorted((int(m[2]), m[1], value) for name, value in metrics.items() if (m := CURVE.fullmatch(name)))
    for step, metric, value in steps:
        table.add_row(f"after {step} inner step{'' if step == 1 else 's'}", _shown(metric, value))
    table.add_row("run directory", str(directory))
    Console().print(table)


def _shown(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:.4g}"
