"""The transfer report as pictures."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from lightning_meta.report.saving import save_figure
from lightning_meta.report.transfer.results import MethodTransfer, TaskTransfer, TransferReport, Verdict
from lightning_meta.report.transfer.text import printable, unit

ROW, PANEL, NAMES = 0.2, 3.2, 2.4  # inches
NAMED, THIN = 40, 0.25  # rows with names in a picture of more tasks: the best and the worst; the height of the others
# Verdicts differ in shape, filling and grey, so that no colour is needed to tell them.
MARKERS: dict[Verdict, tuple[str, str, str]] = {
    "helped": ("^", "black", "black"),
    "hurt": ("v", "black", "black"),
    "no difference shown": ("o", "white", "0.55"),
    "too few seeds": ("o", "white", "0.55"),
    "not comparable": ("x", "white", "0.55"),
}
SHAPES = "sD^vP*X<>"


@matplotlib.rc_context({"text.parse_math": False})  # names of tasks are text
def draw_forest(report: TransferReport, file: Path) -> None:
    """Draw Δ of every task with its 95 % interval, a panel a method; the mark is the verdict.

    Args:
        report: The comparison.
        file: Where to.
    """
    methods = report.methods
    names = [t.task for t in methods[0].tasks]
    mean = np.array([[t.delta for t in m.tasks] for m in methods]).mean(0)
    order = np.argsort(np.where(np.isnan(mean), np.inf, mean), kind="stable")[::-1]
    points = all(t.metric == "accuracy" for t in methods[0].tasks)
    named = _named(len(names))
    rows = _rows(named)
    figure = Figure((NAMES + PANEL * len(methods), 1.5 + ROW * max(rows[-1] + 1, 4)), layout="constrained")
    axes = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for panel, method in zip(axes, methods, strict=True):
        _draw_method(panel, method, order, rows, named, 100.0 if points else 1.0)
        panel.set_title(printable(method.method), parse_math=False, fontsize=10)
    _name_rows(axes[0], rows, named, [_label(names[i]) for i in order])
    what = f"Δ against {printable(report.baseline)}, {_unit(report)} (higher is better)"
    how = "lines: 95 % intervals of each task alone\nmarks: verdicts, corrected for the number of tasks"
    figure.supxlabel(f"{what}\n{how}", fontsize=9, parse_math=False)
    given = {task.verdict for method in methods for task in method.tasks}
    handles = [
        axes[0].plot([], [], marker, mfc=fill, mec=edge, color=edge, ls="-", label=verdict, ms=5)[0]
        for verdict, (marker, fill, edge) in MARKERS.items()
        if verdict in given
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, file)


@matplotlib.rc_context({"text.parse_math": False})  # names of tasks are text
def draw_gap(report: TransferReport, file: Path) -> None:
    """Draw the gap train − validation of every task against its number of training examples.

    Args:
        report: The comparison.
        file: Where to.
    """
    figure = Figure((6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    first = report.methods[0].tasks
    factor = 100.0 if all(t.metric == "accuracy" for t in first) else 1.0
    examples = np.array([t.train_examples for t in first])
    baseline = factor * np.array([t.baseline_gap for t in first])
    drawn = axes.plot(examples, baseline, "o", mfc="white", mec="0.4", ms=6, ls="")
    greys = np.linspace(0.0, 0.6, len(report.methods))
    for i, method in enumerate(report.methods):
        gaps = factor * np.array([t.gap for t in method.tasks])
        shape = SHAPES[i % len(SHAPES)]
        drawn += axes.plot(examples, gaps, shape, color=str(greys[i]), ms=4, ls="")
    axes.axhline(0, color="0.5", lw=0.8)
    if examples.min() > 0 and examples.max() > 3 * examples.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training examples of the task")
    axes.set_ylabel(f"gap train − validation,\n{_unit(report)}")
    names = [printable(name) for name in (report.baseline, *(method.method for method in report.methods))]
    for text in axes.legend(drawn, names, frameon=False, fontsize=8).get_texts():
        text.set_parse_math(False)
    save_figure(figure, file)


def _named(tasks: int) -> np.ndarray:
    """Which rows have a name, `(T,)`: of many tasks the best and the worst."""
    named = np.ones(tasks, dtype=bool)
    if tasks > NAMED + 20:
        named[NAMED // 2 : -NAMED // 2] = False
    return named


def _rows(named: np.ndarray) -> np.ndarray:
    """The heights at which rows are drawn, `(T,)`; those without a name are thin."""
    steps = np.where(named | np.roll(named, 1), 1.0, THIN)
    return np.asarray(steps.cumsum() - 1)


def _name_rows(axes: Axes, rows: np.ndarray, named: np.ndarray, names: list[str]) -> None:
    ticks, labels = list(rows[named]), [name for name, shown in zip(names, named, strict=True) if shown]
    if not named.all():
        ticks.append(float(rows[~named].mean()))
        labels.append(f"{(~named).sum()} more,\nby name in\ntransfer.csv")
    axes.set_yticks(ticks, labels, fontsize=8, parse_math=False)
    axes.set_ylim(-0.7, rows[-1] + 0.7)


def _draw_method(
    axes: Axes, method: MethodTransfer, order: np.ndarray, rows: np.ndarray, named: np.ndarray, factor: float
) -> None:
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


def _unit(report: TransferReport) -> str:
    metrics = {t.metric for t in report.methods[0].tasks}
    return unit(metrics, points=len(metrics) == 1)


def _label(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 32 else f"{name[:29]}..."
