"""Figures of one run, of the training curves of several, and of the score against shots and ways."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.special import stdtrit

from lightning_meta.errors import UserError
from lightning_meta.report.drawing import (
    About,
    draw_chance,
    label_of,
    name_rows,
    number_of,
    panel,
    place_rows,
    plain_text,
    save_figure,
    scale_of,
    shortened,
)
from lightning_meta.report.transfer.reading import read_results
from lightning_meta.run.files import check_target
from lightning_meta.run.tables import numbers_of, read_columns, write_table

# Line styles and markers.
LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (5, 1)), "v"), ((0, (1, 1)), "P"))
WIDTH, ROW, MARGIN = 6.0, 0.2, 1.3  # inches: width of the figure, height of a row, rest of the height of a panel
STAGES = {"train": "Training", "val": "Validation", "test": "Test"}
TEXT = ("task", "metric", "better", "mark")  # columns of text


@plain_text
def write_figures(directory: Path, results: Mapping[str, Any] | None = None) -> list[Path]:
    r"""Draw `figures/training.png` from `metrics.csv`, and `figures/tasks.png` from `per_task.csv`, if they exist.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "metrics.csv").write_text("step,val/accuracy\n100,0.5\n200,0.7\n")
    ...     [file.name for file in write_figures(Path(folder))]
    ['training.png']

    Args:
        directory: The run directory.
        results: Test metrics by name, and facts about the run; by default the content of `results.json`.

    Returns:
        The files of the figures.
    """
    if results is None:
        file = directory / "results.json"
        results = json.loads(file.read_text()) if file.is_file() else {}
    metric = next((m for m in ("accuracy", "mse", "r2") if f"test/{m}" in results), "accuracy")
    about = About.of(results)
    figures: dict[str, Figure | None] = {}
    of_training, what = metric, "training"
    if (file := directory / "per_task.csv").is_file():
        columns = columns_of(file, "task")
        if "metric" in columns:  # a fixed set of tasks, each with a name
            # Tasks of different metrics have the mean `val/score` in common, and no such mean in training.
            metrics = set(columns["metric"].tolist())
            of_training = metrics.pop() if len(metrics) == 1 else "score"
            what = f"training, mean over {number_of(len(columns['task']), 'task')}"
            figures["tasks.png"] = _named_tasks(columns, about.method)
        else:
            figures["tasks.png"] = _tasks(columns, metric, about)
    if (file := directory / "metrics.csv").is_file():
        figures = {"training.png": _training(columns_of(file, "step"), of_training, about, what), **figures}
    drawn = {directory / "figures" / name: figure for name, figure in figures.items() if figure is not None}
    for target, figure in drawn.items():
        save_figure(figure, target)
    return list(drawn)


def columns_of(file: Path, required: str) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file by name: text for those in `TEXT`, else numbers, in which empty cells are NaN.

    Raises:
        UserError: The file is damaged, or lacks the required column.
    """
    columns = read_columns(file, [required])
    return {name: np.array(of if name in TEXT else numbers_of(file, name, of)) for name, of in columns.items()}


def _draw_curve(axes: Axes, columns: dict[str, np.ndarray], name: str, **style: Any) -> list[Line2D]:
    """Draw a column against the step, with its 95 % interval shaded if it was logged; nothing without values."""
    if name not in columns or not (finite := np.isfinite(columns[name])).any():
        return []
    scale = scale_of(name.rpartition("/")[2])
    step, value = columns["step"][finite], scale * columns[name][finite]
    lines = axes.plot(step, value, ms=3, **style)
    half = scale * columns.get(f"{name}_ci95", np.full(len(finite), np.nan))[finite]
    half[np.isinf(half)] = np.nan  # not drawn
    if np.isfinite(half).any():
        label = "its 95 % interval over tasks"
        axes.fill_between(step, value - half, value + half, color=style["color"], alpha=0.15, lw=0, label=label)
    return lines


def _training(columns: dict[str, np.ndarray], metric: str, about: About, what: str) -> Figure | None:
    """Draw the training and validation metric against the step; None if neither was logged."""
    figure, axes = panel()
    _draw_curve(axes, columns, f"train/{metric}", label="training", color="0.65", marker=".")
    _draw_curve(axes, columns, f"val/{metric}", label="validation", color="k", marker="o")
    if not axes.lines:
        return None
    # Training tasks may have other ways and shots, or all training classes, and therefore another chance level.
    draw_chance(axes, metric, about.chance, "chance in validation")
    tested = about._replace(conditions=about.conditions and f"tested {about.conditions}")
    axes.set(xlabel="training step", ylabel=label_of(metric), title=tested.title(what))
    if metric == "mse" and any((line.get_ydata() > 0).any() for line in axes.lines):  # type: ignore[operator,union-attr]
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    return figure


def _tasks(columns: dict[str, np.ndarray], metric: str, about: About) -> Figure | None:
    """Draw the metric after each inner step, or a histogram over tasks; None with fewer than two finite tasks."""
    scores = np.array([values for name, values in columns.items() if name not in TEXT], ndmin=2)
    finite = np.all(np.isfinite(scores), axis=0)
    scores, tasks = scores[:, finite], int(finite.sum())
    if tasks < 2:
        return None
    figure, axes = panel()
    left_out = f", without {lost} not finite" if (lost := len(finite) - tasks) else ""
    if len(scores) > 1:
        half = stdtrit(tasks - 1, 0.975) * scores.std(1, ddof=1) / tasks**0.5
        curve = {"step": np.arange(len(scores)), metric: scores.mean(1), f"{metric}_ci95": half}
        _draw_curve(axes, curve, metric, label="mean", color="k", marker="o")
        axes.set(xlabel="inner step", ylabel=label_of(metric))
        axes.set_title(about.title(f"adaptation on {tasks} test tasks{left_out}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        draw_chance(axes, metric, about.chance)
    else:
        scores *= scale_of(metric)
        axes.hist(scores[0], _edges(scores[0]).tolist(), color="0.65", edgecolor="k")
        mean = f"{scores[0].mean():.1f} %" if metric == "accuracy" else f"{scores[0].mean():.3g}"
        axes.axvline(scores[0].mean(), color="k", ls="--", label=f"mean {mean}")
        draw_chance(axes, metric, about.chance, upright=True)
        axes.set(xlabel=label_of(metric), ylabel="test tasks", title=about.title(f"{tasks} test tasks{left_out}"))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def _edges(scores: np.ndarray) -> np.ndarray:
    """Edges of about 20 bins; with scores on a grid, such as multiples of 1/Q, each bin has as many possible ones."""
    values = np.unique(scores.round(6))
    steps, extent = np.diff(values), values[-1] - values[0]
    grid = steps.min(initial=np.inf)
    # If one score is very large, every number is a multiple of the grid up to rounding.
    if not extent or extent > 1e6 * grid or not np.allclose(steps / grid, (steps / grid).round(), atol=1e-2):
        return np.histogram_bin_edges(scores, bins=20)
    width = grid * max(1, round(extent / grid / 20))
    edges: np.ndarray = values[0] - grid / 2 + width * np.arange(int(np.ceil((extent + grid / 2) / width)) + 1)
    return edges


def _named_tasks(columns: dict[str, np.ndarray], method: str) -> Figure | None:
    """Draw a panel for each metric with one row per task, the best test score on top; None without tasks.

    The line from the test to the training score of a task is its generalisation gap.
    """
    metrics = list(dict.fromkeys(columns["metric"].tolist()))
    if not metrics:
        return None
    panels = [{name: column[columns["metric"] == metric] for name, column in columns.items()} for metric in metrics]
    sizes = [MARGIN + ROW * max(place_rows(len(of["task"]))[0][-1] + 1, 6) for of in panels]
    figure = Figure((WIDTH, sum(sizes)), layout="constrained")
    axes = figure.subplots(len(panels), height_ratios=sizes, squeeze=False)[:, 0]
    for of, metric, panel_axes in zip(panels, metrics, axes, strict=True):
        _draw_rows(panel_axes, of, metric)
    figure.suptitle(About(method).title(f"{number_of(len(columns['task']), 'task')} (number of training examples)"))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _draw_rows(axes: Axes, columns: dict[str, np.ndarray], metric: str) -> None:
    """Draw the rows of the tasks with the same metric, from their columns of `per_task.csv`."""
    scores = {name: scale_of(metric) * columns[name] for name in ("train", "val", "test", "constant")}
    sign = np.where(columns["better"] == "lower", -1, 1)
    order = np.argsort(np.nan_to_num(sign * scores["test"], nan=-np.inf))
    rows, named = place_rows(len(order))
    low = -1.0 if metric == "r2" else -np.inf

    # +∞ is not drawn; scores of an R² below −1, including −∞, are drawn there; other metrics have no lower end.
    def shown(name: str) -> np.ndarray:
        ended = np.maximum(scores[name][order], low)
        return np.where(np.isfinite(ended), ended, np.nan)

    axes.hlines(rows, shown("test"), shown("train"), color="0.75", lw=1, zorder=1)
    for label, name, marker, face in (
        ("training", "train", "|", "0.4"),
        ("validation", "val", "o", "white"),
        ("test", "test", "o", "k"),
    ):
        style: dict[str, Any] = {"marker": marker, "ls": "", "mfc": face, "mec": "k", "zorder": 2}
        axes.plot(shown(name)[named], rows[named], label=label, ms=5, mew=0.8, **style)
        axes.plot(shown(name)[~named], rows[~named], ms=2.5, mew=0.5, **style)
    if np.isfinite(scores["constant"]).any():
        label = "the best constant prediction"
        axes.plot(shown("constant"), rows, "x", color="0.55", ms=4, mew=0.8, label=label, zorder=1.5)
    examples = columns["train_examples"]
    name_rows(axes, [f"{shortened(columns['task'][i])} ({examples[i]:.0f})" for i in order], "per_task.csv")
    below = any((scores[name] < low).any() for name in ("train", "val", "test"))
    axes.set_xlabel(label_of(metric) + (f", below {low:g} drawn there" if below else ""))


@plain_text
def compare_training(runs: Sequence[str | Path], out: str | Path, metric: str = "val/accuracy") -> Path:
    """Draw a metric of several runs against the training step; return the file, whose suffix sets the format.

    Raises:
        UserError: A run has no `metrics.csv` or no finite value of the metric, or the figure cannot be written.
    """
    target = Path(out)
    # PGF needs LaTeX, and raw pixels have no size.
    formats = sorted(set(Figure().canvas.get_supported_filetypes()) - {"pgf", "raw", "rgba"})
    if target.suffix.removeprefix(".").lower() not in formats:
        raise UserError(f"--out {out}: expected a file that ends in one of {', '.join(f'.{f}' for f in formats)}")
    check_target(target, option="--out")
    stage, _, short_name = metric.partition("/")
    figure, axes = panel()
    drawn, labels = [], []
    chances: set[float] = set()
    tasks: set[int] = set()
    for number, run in enumerate(map(Path, runs)):
        about = About.of(read_results(run)) if (run / "results.json").is_file() else About()
        labels.append(f"{run}{f' ({about.method})' if about.method else ''}")
        if about.chance is not None and stage != "train":  # it is that of validation and test tasks
            chances.add(about.chance)
        file = run / "metrics.csv"
        if not file.is_file():
            raise UserError(f"{run}: there is no metrics.csv; name a run directory, such as runs/protonet_glyphs/0")
        columns = columns_of(file, "step")
        line, marker = LINES[number % len(LINES)]
        shade = str(0.7 * (number // len(LINES) % 3) / 2)
        curve = _draw_curve(axes, columns, metric, ls=line, marker=marker, color=shade)
        if not curve:
            logged = ", ".join(sorted(name for name in columns if name.startswith("val/") and "_step_" not in name))
            raise UserError(
                f"--metric {metric}: {file} has no finite value of it; it has {logged or 'no validation metrics'}"
            )
        drawn += curve
        counted = columns.get(f"{metric}_tasks", np.zeros(0))
        tasks |= set(counted[np.isfinite(counted)].astype(int).tolist())
    axes.set(xlabel="training step", ylabel=label_of(short_name))
    shade = "; shade: 95 % interval over tasks" if axes.collections else ""
    over = f"; mean over {' to '.join(map(str, sorted({min(tasks), max(tasks)})))} tasks" if tasks else ""
    axes.set_title(f"{STAGES.get(stage, stage)}{over}{shade}", fontsize=9)
    for chance in sorted(chances):
        draw_chance(axes, short_name, chance)
    # Lines are passed explicitly, since matplotlib leaves out labels that begin with "_".
    at_chance = axes.lines[len(drawn) :]
    labels += [str(line.get_label()) for line in at_chance]
    axes.legend([*drawn, *at_chance], labels, frameon=False, fontsize=7)
    save_figure(figure, target)
    return target


class Point(NamedTuple):
    """The score at one way and shot."""

    ways: int  # number N of classes; 0 in regression
    shots: int  # number K of support examples, per class in classification
    score: float  # mean over tasks; for the accuracy in [0, 1]
    interval: float  # half-width of its 95 % interval
    tasks: int  # number of tasks

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing; None in regression."""
        return 1 / self.ways if self.ways else None


def write_points(points: Sequence[Point], metric: str, file: Path) -> None:
    """Write a CSV file with a row for each way and shot."""
    header = ["ways", "shots", metric, f"{metric}_ci95", "chance", "tasks"]
    write_table(file, [header, *([p.ways or None, p.shots, p.score, p.interval, p.chance, p.tasks] for p in points)])


def draw_points(points: Sequence[Point], metric: str, left_out: Sequence[str] = (), method: str = "") -> Figure:
    """Draw the score against the number of shots, a line for each way, with 95 % intervals.

    The title names the method, the number of tasks, and the ways and shots that were left out.
    """
    figure, axes = panel()
    scale = scale_of(metric)
    for (line, marker), ways in zip(LINES * len(points), sorted({p.ways for p in points}), strict=False):
        of_way = np.array(sorted(p for p in points if p.ways == ways))
        label = f"{ways}-way (chance {100 / ways:.0f} %)" if ways else None
        style: dict[str, Any] = {"ls": line, "marker": marker, "color": "k", "ms": 4, "capsize": 3, "label": label}
        axes.errorbar(of_way[:, 1], scale * of_way[:, 2], scale * of_way[:, 3], **style)
        if ways:
            axes.axhline(scale / ways, ls=line, color="0.6", lw=0.8)
    axes.set_xscale("log")
    shots = sorted({p.shots for p in points})
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.minorticks_off()
    per = "of a class " if points and points[0].ways else ""
    axes.set(xlabel=f"support examples {per}(shot)", ylabel=label_of(metric))
    tasks = points[0].tasks if points else 0
    title = About(method).title(f"mean and 95 % interval over {tasks} test tasks each")
    missing = textwrap.wrap(f"left out: {', '.join(left_out)}", 90) if left_out else []
    axes.set_title("\n".join([title, *missing]), fontsize=8)
    if any(p.ways for p in points):
        axes.legend(frameon=False, fontsize=8)
    return figure
