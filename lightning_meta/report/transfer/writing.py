"""Print the transfer report, write it as CSV, JSON and figures to a folder, and log it to Weights & Biases."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_meta.errors import UserError, reason_of
from lightning_meta.report.drawing import (
    label_of,
    name_rows,
    number_of,
    place_rows,
    plain_text,
    printable,
    save_figure,
    scale_of,
    shortened,
)
from lightning_meta.report.transfer.results import (
    ABOUT,
    SEEDS_FOR_VERDICTS,
    SELECTED,
    Estimate,
    MethodTransfer,
    TaskTransfer,
    TransferReport,
    Verdict,
    common_metric,
    gap_of,
)
from lightning_meta.run.files import replacing
from lightning_meta.run.tables import write_table

PIPED_WIDTH = 140
JOINT = "mean Δ ↑, joint baseline"  # against the baseline with one selected epoch for all tasks, as the method has
SHOWN = 20  # tasks in a table that fits on a screen
NARROW = 125  # columns that a whole row takes with long names
MARKS = {"helped": "▲ helped", "hurt": "▼ hurt"}
ERRORS = " (errors over that of a constant prediction)"
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


def print_report(report: TransferReport, console: Console | None = None, rest: Path | None = None) -> None:
    """Print a table of tasks for each method, a table of the methods, the notes, and the statements over all tasks.

    Args:
        report: The comparison.
        console: Output; by default stdout, with lines of 140 characters if it is not a terminal. In a terminal of less
            than 125 columns the gap is left out, and the causes are printed below the table.
        rest: File with all tasks, named if a table shows only the best and the worst.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, PIPED_WIDTH), quiet=console.quiet)
    for method in report.methods:
        _print_tasks(console, method, report.baseline, rest)
    console.print(_methods(report))
    tasks, lines = report.methods[0].tasks, []
    metric = common_metric(tasks)
    for name, (own, joint, count) in report.selection.items():
        of = "" if count == len(tasks) else f" over the {count} tasks that have both"
        lines.append(
            f"{name} selects each task's own best epoch: mean {metric_text(metric, own)}{of}; "
            f"with one joint epoch {metric_text(metric, joint)}{ERRORS if report.methods[0].has_errors else ''}."
        )
    lines += report.notes
    for method in report.methods:
        lines += statement_lines(method, report.baseline)
    for line in lines:
        console.print(_text(line))


def _text(cell: str) -> Text:
    return Text(printable(cell))


def _print_tasks(console: Console, method: MethodTransfer, baseline: str, rest: Path | None) -> None:
    narrow, metric = console.width < NARROW, common_metric(method.tasks)
    what = f"Δ in {unit(metric)}" if metric else "Δ in the unit of each metric"
    title = _text(f"{method.method} against {baseline}: {what}, Δ > 0 means better")
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("task", no_wrap=True, overflow="ellipsis", max_width=15 if narrow else 40)
    if not metric:
        table.add_column("metric", no_wrap=True, overflow="ellipsis", max_width=8 if narrow else 20)
    gap = [] if narrow else [gap_of(method.tasks, "val").replace(" ", "\n", 1)]
    for name in ("train\nexamples", "baseline", "method", "Δ ↑", "95 % interval", *gap):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=narrow)
    tasks = sorted(method.tasks, key=lambda task: (math.isnan(task.delta), task.delta))
    between = len(tasks) - SHOWN if len(tasks) > SHOWN + 1 else 0
    if between:
        tasks = [*tasks[: SHOWN // 2], *tasks[-SHOWN // 2 :]]
    for number, task in enumerate(tasks):
        if between and number == SHOWN // 2:
            table.add_row(f"… {between} more")
        cells = [
            task.task,
            *([] if metric else [label_of(task.metric)]),
            str(task.train_examples),
            metric_text(task.metric, task.baseline),
            metric_text(task.metric, task.value),
            change_text(task.metric, task.delta),
            _interval(task.metric, task.low, task.high),
        ]
        if narrow:
            cells.append(MARKS.get(task.verdict, "–"))
        else:
            verdict = MARKS.get(task.verdict, task.verdict)
            cells += [change_text(task.metric, task.gap), f"{verdict}: {task.cause}" if task.cause else verdict]
        table.add_row(*map(_text, cells))
    console.print(table)
    if between:
        verdicts = Counter(MARKS.get(task.verdict, task.verdict) for task in method.tasks)
        counts = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common())
        where = f"; all are in {rest}" if rest else ""
        half = SHOWN // 2
        console.print(_text(f"The worst {half} and the best {half} of {len(method.tasks)}{where}. {counts}."))
    for task in tasks:
        joint = ""
        if task.cause == SELECTED and math.isfinite(task.delta_joint):
            joint = f"; Δ {change_text(task.metric, task.delta_joint)} against the baseline with one joint epoch"
        if task.cause and (narrow or joint):
            console.print(_text(f"▼ {task.task}: {task.cause}{joint}"))


def _methods(report: TransferReport) -> Table:
    """A table with a column for each method and for the baseline."""
    total, compared = len(report.methods[0].tasks), max(method.for_models.tasks for method in report.methods)
    over = f"all {total} tasks" if compared == total else f"{compared} of {total} tasks"
    title = _text(f"Over {over}, against {report.baseline}")
    table = Table("", title=title, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in (*(method.method for method in report.methods), report.baseline):
        table.add_column(_text(name), justify="right", overflow="fold")
    columns = [_over_all(method) for method in report.methods]
    for name in columns[0]:
        if name == JOINT and all(column[name] == "–" for column in columns):
            continue  # the baseline selects so anyway
        last = f"{report.baseline_rank:.2f}" if name == "mean rank ↓" else ""
        table.add_row(name, *(_text(column[name]) for column in columns), last)
    return table


def _over_all(method: MethodTransfer) -> dict[str, str]:
    metric = common_metric(method.tasks)
    worst = next((task for task in method.tasks if task.task == method.worst), method.tasks[0])
    return {
        "Δm ↑": f"{100 * method.delta_m:+.1f} %" if math.isfinite(method.delta_m) else "–",
        JOINT: change_text(metric, method.mean_delta_joint),
        "tasks helped": _rate(method.helped),
        "tasks hurt": _rate(method.harmed),
        "worst Δ": (change_text if metric else _amount)(worst.metric, worst.delta),  # with its unit if metrics differ
        "of the task": method.worst,
        "mean rank ↓": f"{method.mean_rank:.2f}",
        f"mean {gap_of(method.tasks, 'val')}": change_text(metric, method.mean_gap),
        "dominating tasks": ", ".join(method.dominating) or "none",
    }


def statement_lines(method: MethodTransfer, baseline: str) -> list[str]:
    """Return a heading, a line for the trained models and a line for the method."""
    metric = "" if method.has_errors else common_metric(method.tasks)
    models, over_seeds = method.for_models, method.for_method
    differ = "better on average" if models.low > 0 else "worse on average" if models.high < 0 else "not shown to differ"
    counts = f"better in {models.better} of {models.tasks} tasks, worse in {models.worse}"
    missing = SEEDS_FOR_VERDICTS - over_seeds.seeds
    needed = f" A verdict takes {SEEDS_FOR_VERDICTS} seeds: train {missing} more." if missing > 0 else ""
    seeds = number_of(over_seeds.seeds, "seed")
    return [
        f"{method.method} against {baseline}, over the tasks{ERRORS if method.has_errors else ''}:",
        f"  For these trained models: {differ} ({counts}); {_estimated(metric, models, 'tasks')}",
        f"  For the method: {over_seeds.verdict}: {_estimated(metric, over_seeds, seeds)}{needed}",
    ]


def _estimated(metric: str, estimate: Estimate, over: str) -> str:
    mean = f"mean Δ {_amount(metric, estimate.mean)}"
    if not math.isfinite(estimate.low):
        return f"{mean}, without an interval over {over}."
    line = f"{mean}, 95 % interval over {over} {_interval(metric, estimate.low, estimate.high)}."
    if math.isfinite(estimate.smallest):
        smallest = _amount(metric, estimate.smallest).replace("+", "±")
        line += f" Smallest Δ that could have been shown: {smallest} (4 times in 5)."
    return line


def _rate(value: float) -> str:
    return f"{100 * value:.0f} %" if math.isfinite(value) else "–"


def _amount(metric: str, value: float) -> str:
    return change_text(metric, value) + (" points" if metric == "accuracy" else "")


def _interval(metric: str, low: float, high: float) -> str:
    return f"[{change_text(metric, low)}, {change_text(metric, high)}]" if math.isfinite(low) else "–"


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


def unit(metric: str) -> str:
    """The unit of differences of a metric."""
    return "percentage points of accuracy" if metric == "accuracy" else label_of(metric)


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
    """Draw Δ of every task with its 95 % interval and verdict, in a row of panels for each metric."""
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
