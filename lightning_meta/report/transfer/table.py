"""The transfer report in the terminal: tables, and the statements over all tasks as text."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_meta.report.drawing import label_of, number_of, printable
from lightning_meta.report.transfer.results import (
    SEEDS_FOR_VERDICTS,
    SELECTED,
    Estimate,
    MethodTransfer,
    TransferReport,
    common_metric,
    gap_of,
)

PIPED_WIDTH = 140
JOINT = "mean Δ ↑, joint baseline"  # against the baseline with one selected epoch for all tasks, as the method has
SHOWN = 20  # tasks in a table that fits on a screen
NARROW = 125  # columns that a whole row takes with long names
MARKS = {"helped": "▲ helped", "hurt": "▼ hurt"}
ERRORS = " (errors over that of a constant prediction)"


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
            _interval(task.metric, task.low, task.high) if math.isfinite(task.low) else "–",
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
    return f"[{change_text(metric, low)}, {change_text(metric, high)}]"


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
