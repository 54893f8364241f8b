"""Write the transfer report as CSV, JSON and figures to a folder, and to Weights & Biases."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from lightning_meta.errors import UserError, reason_of
from lightning_meta.report.drawing import heights, label_of, name_rows, named_rows, save_figure, scale_of, shortened
from lightning_meta.report.transfer.comparison import RULES
from lightning_meta.report.transfer.intervals import METHOD
from lightning_meta.report.transfer.results import RULES as STATEMENTS
from lightning_meta.report.transfer.results import (
    ForTheMethod,
    ForTheseModels,
    MethodTransfer,
    TaskTransfer,
    TransferReport,
    Verdict,
    gap_of,
)
from lightning_meta.report.transfer.table import printable, unit
from lightning_meta.run.files import replacing
from lightning_meta.run.tables import write_table

FILES = ("transfer.csv", "transfer.json", "forest.png", "gap.png")
TASK_COLUMNS = tuple(f.name for f in fields(TaskTransfer))
NESTED = {"for_models": ForTheseModels, "for_method": ForTheMethod}
METHOD_COLUMNS = (
    *(f.name for f in fields(MethodTransfer) if f.name not in ("tasks", *NESTED)),
    *(f"{statement}_{f.name}" for statement, kind in NESTED.items() for f in fields(kind)),
)
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


def write_csv(report: TransferReport, file: Path) -> None:
    """Write a CSV file with one row for each method and task; unknown values are empty."""
    rows = [
        [method.method, *("" if _unknown(value) else value for value in asdict(task).values())]
        for method in report.methods
        for task in method.tasks
    ]
    write_table(file, [["method", *TASK_COLUMNS], *rows])


def method_row(method: MethodTransfer) -> dict[str, Any]:
    """The results of a method over all tasks, by the names in `METHOD_COLUMNS`."""
    row = asdict(method)
    row |= {f"{name}_{key}": value for name in NESTED for key, value in row[name].items()}
    return {name: row[name] for name in METHOD_COLUMNS} | {"dominating": ", ".join(method.dominating)}


def write_json(report: TransferReport, file: Path) -> None:
    """Write the whole report and the rules of its statistics as JSON; unknown values are null."""
    content = {
        "sign": "higher is better",
        "intervals": METHOD,
        "causes": RULES,
        "statements": STATEMENTS,
        **asdict(report),
    }
    with replacing(file) as stream:
        json.dump(_plain(content), stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def _plain(value: Any) -> Any:
    """Convert tuples to lists and numbers that are not finite to None, which JSON can represent."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if _unknown(value) else value


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


@matplotlib.rc_context({"text.parse_math": False})  # names of tasks are text
def draw_forest(report: TransferReport, file: Path) -> None:
    """Draw Δ of every task with its 95 % interval, in a panel for each method; the marker shows the verdict.

    If tasks have different metrics, there is a row of panels for each metric.
    """
    methods, metrics = report.methods, _metrics(report)
    blocks = [_sorted_tasks(report, metric) for metric in metrics]
    named = [named_rows(len(order)) for order in blocks]
    rows = [heights(has_name) for has_name in named]
    sizes = [ROW * max(float(r[-1]) + 1, 4) + 0.5 for r in rows]
    figure = Figure((NAMES + PANEL * len(methods), 1.3 + sum(sizes)), layout="constrained")
    panels = figure.subplots(len(blocks), len(methods), sharex="row", sharey="row", squeeze=False, height_ratios=sizes)
    for panel_row, metric, order, has_name, row_heights in zip(panels, metrics, blocks, named, rows, strict=True):
        for panel, method in zip(panel_row, methods, strict=True):
            _draw_method(panel, method, order, row_heights, has_name, scale_of(metric))
        names = [shortened(printable(methods[0].tasks[i].task)) for i in order]
        name_rows(panel_row[0], row_heights, has_name, names, "transfer.csv")
        if len(metrics) > 1:
            for panel in panel_row:
                panel.set_xlabel(f"Δ, {unit({metric})}", fontsize=8, parse_math=False)
    for panel, method in zip(panels[0], methods, strict=True):
        panel.set_title(printable(method.method), parse_math=False, fontsize=10)
    units = f", {unit(set(metrics))}" if len(metrics) == 1 else ""
    what = f"Δ against {printable(report.baseline)}{units} (higher is better)"
    how = "lines: 95 % intervals of each task alone\nmarks: verdicts, corrected for the number of tasks"
    count = len(methods[0].tasks)
    figure.supxlabel(f"{what}, {count} task{'s' if count > 1 else ''}\n{how}", fontsize=9, parse_math=False)
    verdicts = {task.verdict for method in methods for task in method.tasks}
    handles = [
        panels[0, 0].plot([], [], marker, mfc=fill, mec=edge, color=edge, ls="-", label=verdict, ms=5)[0]
        for verdict, (marker, fill, edge) in MARKERS.items()
        if verdict in verdicts
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, file)


@matplotlib.rc_context({"text.parse_math": False})  # names of tasks are text
def draw_gap(report: TransferReport, file: Path) -> None:
    """Draw the generalisation gap of every task against its number of training examples, in a panel per metric."""
    metrics = _metrics(report)
    figure = Figure((6.4, 4.4 * len(metrics)), layout="constrained")
    names = [printable(name) for name in (report.baseline, *(method.method for method in report.methods))]
    for axes, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
        drawn = _draw_gaps(axes, report, metric)
        for text in axes.legend(drawn, names, frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)
    save_figure(figure, file)


def _draw_gaps(axes: Axes, report: TransferReport, metric: str) -> list[Line2D]:
    """Draw the gaps of the tasks that have a metric, and return the markers of the baseline and of each method."""
    chosen, scale = _of_metric(report, metric), scale_of(metric)
    first = [report.methods[0].tasks[i] for i in chosen]
    examples = np.array([t.train_examples for t in first])
    baseline = scale * np.array([t.baseline_gap for t in first])
    drawn = axes.plot(examples, baseline, "o", mfc="white", mec="0.4", ms=6, ls="")
    greys = np.linspace(0.0, 0.6, len(report.methods))
    for i, method in enumerate(report.methods):
        gaps = scale * np.array([method.tasks[j].gap for j in chosen])
        shape = SHAPES[i % len(SHAPES)]
        drawn += axes.plot(examples, gaps, shape, color=str(greys[i]), ms=4, ls="")
    axes.axhline(0, color="0.5", lw=0.8)
    if examples.min() > 0 and examples.max() > 3 * examples.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training examples of the task")
    axes.set_ylabel(f"{gap_of(first)},\n{unit({metric})}")
    compared = report.methods[0].method if len(report.methods) == 1 else "methods"
    count = f"{len(chosen)} task{'s' if len(chosen) > 1 else ''}"
    title = f"{printable(compared)} and {printable(report.baseline)}: {count} of {label_of(metric).partition(',')[0]}"
    axes.set_title(title, fontsize=9, parse_math=False)
    return drawn


def _metrics(report: TransferReport) -> list[str]:
    """The metrics of the tasks without duplicates."""
    return list(dict.fromkeys(t.metric for t in report.methods[0].tasks))


def _of_metric(report: TransferReport, metric: str) -> list[int]:
    """The indices of the tasks that have a metric."""
    return [i for i, t in enumerate(report.methods[0].tasks) if t.metric == metric]


def _sorted_tasks(report: TransferReport, metric: str) -> list[int]:
    """The indices of the tasks of a metric, sorted by mean Δ over methods, largest first; tasks without Δ precede."""
    chosen = np.array(_of_metric(report, metric))
    mean = np.array([[method.tasks[i].delta for i in chosen] for method in report.methods]).mean(0)
    order = np.argsort(np.where(np.isnan(mean), np.inf, mean), kind="stable")[::-1]
    return [int(i) for i in chosen[order]]


def _draw_method(
    axes: Axes, method: MethodTransfer, order: list[int], rows: np.ndarray, named: np.ndarray, factor: float
) -> None:
    """Draw the tasks of a method at the heights `rows`, with Δ times `factor`; rows without a name are thin."""
    axes.axvline(0, color="0.2", lw=1, zorder=0.9)
    for y, large, i in zip(rows, named, order, strict=True):
        task: TaskTransfer = method.tasks[i]
        marker, fill, edge = MARKERS[task.verdict]
        axes.plot([factor * task.low, factor * task.high], [y, y], color=edge, lw=1.2 if large else 0.6, zorder=1)
        axes.plot(factor * task.delta, y, marker, mfc=fill, mec=edge, ms=5 if large else 2.5, zorder=2)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)


def log_report(report: TransferReport, folder: Path, project: str) -> None:
    """Log the tables and figures of the report as a separate W&B run; offline with `WANDB_MODE=offline`.

    Args:
        report: The comparison.
        folder: Folder that has `forest.png` and `gap.png`, and to which wandb writes its files.
        project: Name of the W&B project.

    Raises:
        UserError: wandb is not installed, or reports an error.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb_project: wandb is not installed; pip install 'lightning_meta[wandb]'") from error
    try:
        with wandb.init(project=project, dir=folder, job_type="compare", name=f"against {report.baseline}") as run:
            tasks = wandb.Table(columns=["method", *TASK_COLUMNS])
            methods = wandb.Table(columns=list(METHOD_COLUMNS))
            for method in report.methods:
                methods.add_data(*method_row(method).values())
                for task in method.tasks:
                    tasks.add_data(method.method, *asdict(task).values())
            pictures = {f"transfer/{name}": wandb.Image(str(folder / f"{name}.png")) for name in ("forest", "gap")}
            run.log({"transfer/tasks": tasks, "transfer/methods": methods, **pictures})
    except wandb.errors.Error as error:
        raise UserError(f"--wandb_project {project}: {reason_of(error)}") from error
