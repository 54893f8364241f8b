"""Write the figures and results of a run or test, and print a short table."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from rich.console import Console
from rich.table import Table

from lightning_meta.multitask import MultiTaskModule
from lightning_meta.multitask.tables import in_different_units
from lightning_meta.report import write_figures
from lightning_meta.run.results import write_results
from lightning_meta.run.tables import read_table

CURVE = re.compile(r"test/(accuracy|mse)_step_(\d+)")
MOST_TASKS, MOST_STEPS = 25, 12  # rows that fit on a screen together with the others


def write_outcome(directory: Path, metrics: Mapping[str, float], about: Mapping[str, Any]) -> None:
    """Write the figures, then `results.json`, so that a directory with results is complete.

    Args:
        directory: The run directory.
        metrics: Logged test metrics by name.
        about: Further entries of `results.json`; plain data.
    """
    try:
        write_figures(directory, {**about, **metrics})
    except Exception:  # results are written even if a figure fails
        write_results(directory, metrics, about)
        raise
    write_results(directory, metrics, about)


def print_summary(
    metrics: Mapping[str, float], directory: Path, conditions: str = "", without_mean: Collection[str] = ()
) -> None:
    """Print the run directory and the test scores: the mean over drawn tasks with its 95 % interval, or named tasks.

    If named tasks are compared by different metrics, a task shows its own metric first, then the others that it has, so
    that the table lists every value of the printed means.

    Args:
        metrics: Logged test metrics by name.
        directory: The run directory.
        conditions: Description of a test task; "" if the tasks have names.
        without_mean: Metrics whose mean over named tasks says nothing, as the tasks have different units.
    """
    table = Table("test", "", title=None, show_header=False)
    named = _named_tasks(directory / "per_task.csv")
    averaged = list(dict.fromkeys(row["metric"] for row in named))
    shown = named if len(named) <= MOST_TASKS else named[: MOST_TASKS - 1]
    for row in shown:
        table.add_row(row["task"], _of_task(row, averaged, metrics))
    if len(shown) < len(named):
        rest = named[len(shown) :]
        marked = sum(bool(row.get("mark")) for row in rest)
        table.add_row(f"{len(rest)} more tasks", "per_task.csv" + (f", {marked} with a mark" if marked else ""))
    if named:
        table.add_section()
    for metric in [metric for metric in averaged if metric not in without_mean] if named else ("accuracy", "mse"):
        if (score := metrics.get(f"test/{metric}")) is not None:
            half_width = ""
            interval = metrics.get(f"test/{metric}_ci95", math.nan)
            if not math.isnan(interval):  # of a single task there is none
                half_width = f" ± {_shown(metric, interval)} (95 %)"
            over = _over(metrics, metric) if named else ""
            table.add_row(f"test {metric}", _shown(metric, score) + half_width + over)
    if (median := metrics.get("test/mse_median")) is not None:
        table.add_row("test mse, median", _shown("mse", median))
    if (tasks := metrics.get("test/tasks")) is not None:
        table.add_row("tasks", f"{tasks:.0f}" + (f", {conditions}" if conditions else ""))
    steps = sorted((int(m[2]), m[1], value) for name, value in metrics.items() if (m := CURVE.fullmatch(name)))
    for step, metric, value in steps:
        # Of many steps, print 0, 1, 2, 5, 10, 20, 50 and so on, and the last.
        if len(steps) <= MOST_STEPS or step == steps[-1][0] or re.fullmatch("0|[125]0*", str(step)):
            table.add_row(f"after {step} inner step{'' if step == 1 else 's'}", _shown(metric, value))
    if len(steps) > MOST_STEPS:
        table.add_row("all inner steps", "results.json")
    table.add_row("run directory", str(directory))
    Console(markup=False, emoji=False).print(table)  # names of tasks are text


def without_mean(module: LightningModule) -> set[str]:
    """Return the metrics of a trained module whose mean over tasks says nothing, as the tasks have different units."""
    return in_different_units(module.spec) if isinstance(module, MultiTaskModule) else set()


def _named_tasks(file: Path) -> list[dict[str, str]]:
    """The row of each named task of a test; empty if the tasks were drawn."""
    columns, rows = read_table(file) if file.is_file() else ([], [])
    return [dict(zip(columns, values, strict=True)) for values in rows] if "metric" in columns else []


def _of_task(row: Mapping[str, str], averaged: Sequence[str], metrics: Mapping[str, float]) -> str:
    """The metric of a named task and its mark; and its other metrics that enter a printed mean."""
    own, task = row["metric"], row["task"]
    mark = f", {row['mark']}" if row.get("mark") else ""
    score = _shown(own, float(row["test"])) + mark
    if len(averaged) == 1:
        return score
    others = {metric: metrics.get(f"test/{metric}/{task}", math.nan) for metric in averaged if metric != own}
    further = [f"{metric} {_shown(metric, value)}" for metric, value in others.items() if not math.isnan(value)]
    return "\n".join([f"{own} {score}", *further])


def _over(metrics: Mapping[str, float], metric: str) -> str:
    """The number of tasks over which a metric is averaged, in words."""
    averaged, tasks = metrics.get(f"test/{metric}_tasks"), metrics.get("test/tasks")
    if averaged is None or tasks is None or averaged == tasks:
        return ", mean over tasks"
    return f", mean over {averaged:.0f} of {tasks:.0f} tasks"


def _shown(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:.4g}"
