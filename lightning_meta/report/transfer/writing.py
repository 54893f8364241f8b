"""Write the transfer report as CSV, JSON and figures to a folder, and to Weights & Biases."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from lightning_meta.errors import UserError, reason_of
from lightning_meta.report.drawing import (
    label_of,
    name_rows,
    number_of,
    place_rows,
    plain_text,
    save_figure,
    scale_of,
    shortened,
)
from lightning_meta.report.transfer.results import ABOUT, TaskTransfer, TransferReport, Verdict, gap_of
from lightning_meta.report.transfer.table import unit
from lightning_meta.run.files import replacing
from lightning_meta.run.tables import write_table

FILES = ("transfer.csv", "transfer.json", "forest.png", "gap.png")
ROW, PANEL, NAMES = 0.2, 3.2, 2.4  # inches
# Verdicts differ in shape, fill and grey level, so that they can be distinguished without colour.
MARKERS: dict[Verdict, tuple[str, str, str]] = {
    "helped": ("^", "black", "black"),
    "hurt": ("v", "black", "black"),
    "no difference shown": ("o", "white", "0.55"),
    "too few seeds": ("o", "white", "0.55"),
    "not comparable": ("x", "white", "0.55"),
}
SHAPES = "sD^vP*X<>"


def write_report(report: TransferReport, folder: str | Path) -> Path:
    """Write `transfer.csv`, `transfer.json`, `forest.png` and `gap.png`.

    Args:
        report: The comparison.
        folder: Folder to write to; created if it does not exist.

    Returns:
        The folder.

    Raises:
        UserError: The folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for write, name in zip((write_csv, write_json, draw_forest, draw_gap), FILES, strict=True):
            write(report, folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}); name another folder") from error
    return folder


def task_rows(report: TransferReport) -> list[dict[str, Any]]:
    """The results of each method and task by column."""
    return [{"method": method.method, **vars(task)} for method in report.methods for task in method.tasks]


def method_rows(report: TransferReport) -> list[dict[str, Any]]:
    """The results of each method over all tasks by column."""
    rows = []
    for method in report.methods:
        row = {**vars(method), "dominating": ", ".join(method.dominating)}
        del row["tasks"]
        for name in ("for_models", "for_method"):
            row |= {f"{name}_{key}": value for key, value in vars(row.pop(name)).items()}
        rows.append(row)
    return rows


def write_csv(report: TransferReport, file: Path) -> None:
    """Write a CSV file with one row for each method and task; unknown values are empty."""
    rows = task_rows(report)
    values = [["" if isinstance(v, float) and not math.isfinite(v) else v for v in row.values()] for row in rows]
    write_table(file, [rows[0], *values])


def write_json(report: TransferReport, file: Path) -> None:
    """Write the whole report and the rules of its statistics as JSON; unknown values are null."""
    known = json.loads(json.dumps({**ABOUT, **asdict(report)}), parse_constant=lambda nan_or_infinity: None)
    with replacing(file) as stream:
        json.dump(known, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


@plain_text
def draw_forest(report: TransferReport, file: Path) -> None:
    """Draw Δ of every task with its 95 % interval, in a panel for each method; the marker shows the verdict.

    If tasks have different metrics, there is a row of panels for each metric.
    """
    methods, numbers = report.methods, _numbers_by_metric(report)
    orders = {metric: _sorted_tasks(report, chosen) for metric, chosen in numbers.items()}
    sizes = [ROW * max(place_rows(len(order))[0][-1] + 1, 4) + 0.5 for order in orders.values()]
    figure = Figure((NAMES + PANEL * len(methods), 1.3 + sum(sizes)), layout="constrained")
    panels = figure.subplots(len(orders), len(methods), sharex="row", sharey="row", squeeze=False, height_ratios=sizes)
    for panel_row, (metric, order) in zip(panels, orders.items(), strict=True):
        for axes, method in zip(panel_row, methods, strict=True):
            _draw_tasks(axes, [method.tasks[i] for i in order], scale_of(metric))
            if len(orders) > 1:
                axes.set_xlabel(f"Δ, {unit(metric)}", fontsize=8)
        name_rows(panel_row[0], [shortened(methods[0].tasks[i].task) for i in order], "transfer.csv")
    for axes, method in zip(panels[0], methods, strict=True):
        axes.set_title(shortened(method.method), fontsize=10)
    units = f", {unit(methods[0].tasks[0].metric)}" if len(orders) == 1 else ""
    what = (
        f"Δ against {shortened(report.baseline)}{units} (higher is better), {number_of(len(methods[0].tasks), 'task')}"
    )
    how = "lines: 95 % intervals of each task alone\nmarks: verdicts, corrected for the number of tasks"
    figure.supxlabel(f"{what}\n{how}", fontsize=9)
    verdicts = {task.verdict for method in methods for task in method.tasks}
    handles = [
        panels[0, 0].plot([], [], marker, mfc=fill, mec=edge, color=edge, ls="-", label=verdict, ms=5)[0]
        for verdict, (marker, fill, edge) in MARKERS.items()
        if verdict in verdicts
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, file)


def _numbers_by_metric(report: TransferReport) -> dict[str, list[int]]:
    """The numbers of the tasks that have each metric."""
    numbers: dict[str, list[int]] = {}
    for i, task in enumerate(report.methods[0].tasks):
        numbers.setdefault(task.metric, []).append(i)
    return numbers


def _sorted_tasks(report: TransferReport, numbers: list[int]) -> list[int]:
    """The numbers of tasks, sorted by mean Δ over methods, largest first; tasks without Δ precede."""
    mean = np.array([[method.tasks[i].delta for i in numbers] for method in report.methods]).mean(0)
    order = np.argsort(np.where(np.isnan(mean), np.inf, mean), kind="stable")[::-1]
    return [numbers[i] for i in order]


def _draw_tasks(axes: Axes, tasks: list[TaskTransfer], scale: float) -> None:
    axes.axvline(0, color="0.2", lw=1, zorder=0.9)
    for y, large, task in zip(*place_rows(len(tasks)), tasks, strict=True):
        marker, fill, edge = MARKERS[task.verdict]
        axes.plot([scale * task.low, scale * task.high], [y, y], color=edge, lw=1.2 if large else 0.6, zorder=1)
        axes.plot(scale * task.delta, y, marker, mfc=fill, mec=edge, ms=5 if large else 2.5, zorder=2)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)


@plain_text
def draw_gap(report: TransferReport, file: Path) -> None:
    """Draw the generalisation gap of every task against its number of training examples, in a panel per metric."""
    numbers = _numbers_by_metric(report)
    figure = Figure((6.4, 4.4 * len(numbers)), layout="constrained")
    names = [shortened(name) for name in (report.baseline, *(method.method for method in report.methods))]
    against = f"{names[1] if len(names) == 2 else 'methods'} and {names[0]}"
    panels = figure.subplots(len(numbers), squeeze=False)[:, 0]
    for axes, (metric, chosen) in zip(panels, numbers.items(), strict=True):
        scale, tasks = scale_of(metric), [report.methods[0].tasks[i] for i in chosen]
        examples = np.array([t.train_examples for t in tasks])
        baseline = scale * np.array([t.baseline_gap for t in tasks])
        axes.plot(examples, baseline, "o", mfc="white", mec="0.4", ms=6, ls="")
        for i, method in enumerate(report.methods):
            gaps = scale * np.array([method.tasks[j].gap for j in chosen])
            grey = str(0.6 * i / max(len(report.methods) - 1, 1))
            axes.plot(examples, gaps, SHAPES[i % len(SHAPES)], color=grey, ms=4, ls="")
        axes.legend(axes.lines, names, frameon=False, fontsize=8)
        axes.axhline(0, color="0.5", lw=0.8)
        if examples.min() > 0 and examples.max() > 3 * examples.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="training examples of the task", ylabel=f"{gap_of(tasks)},\n{unit(metric)}")
        what = f"{number_of(len(chosen), 'task')} of {label_of(metric).partition(',')[0]}"
        axes.set_title(f"{against}: {what}", fontsize=9)
    save_figure(figure, file)


def log_report(report: TransferReport, folder: Path, project: str) -> None:
    """Log the tables of the report and the figures in its folder as a W&B run; offline with `WANDB_MODE=offline`.

    Raises:
        UserError: wandb is not installed, or reports an error.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb_project: wandb is not installed; pip install 'lightning_meta[wandb]'") from error
    try:
        with wandb.init(project=project, dir=folder, job_type="compare", name=f"against {report.baseline}") as run:
            logged: dict[str, Any] = {}
            for name, rows in (("tasks", task_rows(report)), ("methods", method_rows(report))):
                logged[f"transfer/{name}"] = wandb.Table(list(rows[0]), [list(row.values()) for row in rows])
            for name in ("forest", "gap"):
                logged[f"transfer/{name}"] = wandb.Image(str(folder / f"{name}.png"))
            run.log(logged)
    except wandb.errors.Error as error:
        raise UserError(f"--wandb_project {project}: {reason_of(error)}") from error
