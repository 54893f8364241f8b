"""Figures of one run, of the training curves of several, and of the score against shots and ways."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray
from scipy.special import stdtrit

from lightning_meta.errors import UserError
from lightning_meta.report.drawing import (
    About,
    draw_chance,
    heights,
    label_of,
    name_rows,
    named_rows,
    save_figure,
    scale_of,
    shortened,
)
from lightning_meta.report.transfer.reading import read_results
from lightning_meta.run.files import check_target
from lightning_meta.run.tables import numbers_of, read_columns, write_table

SIZE = (6.0, 4.0)  # inches
# Line styles and markers.
LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (5, 1)), "v"), ((0, (1, 1)), "P"))
WIDTH, ROW, MARGIN = 6.0, 0.2, 1.3  # inches: width of the figure, height of a row, rest of the height of a panel
STAGES = {"train": "Training", "val": "Validation", "test": "Test"}


@matplotlib.rc_context({"text.parse_math": False})  # names of tasks are text
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
    folder = directory / "figures"
    if results is None:
        file = directory / "results.json"
        results = json.loads(file.read_text()) if file.is_file() else {}
    metric = next((m for m in ("accuracy", "mse", "r2") if f"test/{m}" in results), "accuracy")
    about = About.of(results)
    figures: dict[str, Figure | None] = {}
    file = directory / "per_task.csv"
    columns = columns_of(file, words=True) if file.is_file() else {}
    of_training, what = metric, "training"
    if "metric" in columns:  # a fixed set of tasks, each with a name
        count = len(columns["task"])
        # Tasks of different metrics have the mean `val/score` in common, and no such mean in training.
        own = set(columns["metric"].tolist())
        of_training = own.pop() if len(own) == 1 else "score"
        what = f"training, mean over {count} task{'s' if count > 1 else ''}"
    if (directory / "metrics.csv").is_file():
        figures["training.png"] = _training(columns_of(directory / "metrics.csv"), of_training, about, what)
    if "metric" in columns:
        figures["tasks.png"] = named_tasks_figure(columns, about.method)
    elif columns:
        figures["tasks.png"] = _tasks(columns, metric, about)
    drawn = {folder / name: figure for name, figure in figures.items() if figure is not None}
    for target, figure in drawn.items():
        save_figure(figure, target)
    return list(drawn)


def columns_of(file: Path, words: bool = False) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file as numbers, by name; empty cells are NaN.

    Args:
        file: The file.
        words: Whether it is a table of tasks, in which a column, such as `task`, may contain text.

    Raises:
        UserError: The file is damaged.
    """
    columns = read_columns(file, ["task" if words else "step"])
    return {name: _column(file, name, values, words) for name, values in columns.items()}


def _column(file: Path, name: str, values: list[str], words: bool) -> np.ndarray:
    if words and name == "task":
        return np.array(values)
    try:
        return np.array(numbers_of(file, name, values))
    except UserError:
        if words:
            return np.array(values)
        raise


def _training(columns: dict[str, np.ndarray], metric: str, about: About, what: str) -> Figure | None:
    """Draw the training and validation metric against the step, with its 95 % interval shaded; None if not logged."""
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    scale = scale_of(metric)
    for name, stage, colour, marker in (
        (f"train/{metric}", "training", "0.65", "."),
        (f"val/{metric}", "validation", "k", "o"),
    ):
        if name in columns and (finite := np.isfinite(columns[name])).any():
            step, value = columns["step"][finite], scale * columns[name][finite]
            axes.plot(step, value, label=stage, color=colour, marker=marker, markersize=3)
            if (interval := columns.get(f"{name}_ci95")) is not None:
                low, high = band(value, scale * interval[finite])
                shade = "its 95 % interval over tasks" if np.isfinite(low).any() else None
                axes.fill_between(step, low, high, color="k", alpha=0.15, lw=0, label=shade)
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


def band(value: np.ndarray, interval: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of intervals of a half-width around values, `(n,)`; NaN, which is not drawn, if not finite."""
    interval = np.where(np.isfinite(interval), interval, np.nan)
    return value - interval, value + interval


def _tasks(columns: dict[str, np.ndarray], metric: str, about: About) -> Figure | None:
    """Draw the metric after each inner step with its 95 % interval; without inner steps, a histogram over tasks.

    None with fewer than two tasks whose scores are all finite.
    """
    scores = [c for name, c in columns.items() if name != "task" and c.dtype.kind == "f"]
    finite = np.all([np.isfinite(column) for column in scores], axis=0) if scores else np.zeros(0, bool)
    scale, tasks = scale_of(metric), int(finite.sum())
    scores = [scale * column[finite] for column in scores]
    if tasks < 2:
        return None
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    left_out = f", without {lost} not finite" if (lost := len(finite) - tasks) else ""
    if len(scores) > 1:
        steps, means = np.arange(len(scores)), np.array([s.mean() for s in scores])
        intervals = np.array([stdtrit(tasks - 1, 0.975) * s.std(ddof=1) / tasks**0.5 for s in scores])
        few = len(steps) <= 12
        style = {"marker": "o" if few else None, "ms": 4, "capsize": 3 if few else 0}
        axes.errorbar(steps, means, intervals, color="k", label="mean and 95 % interval", **style)  # type: ignore[arg-type]
        axes.set(xlabel="inner step", ylabel=label_of(metric))
        axes.set_title(about.title(f"adaptation on {tasks} test tasks{left_out}"))
        axes.xaxis.set_major_locator(FixedLocator(steps.tolist()) if few else MaxNLocator(integer=True))
        draw_chance(axes, metric, about.chance)
    else:
        axes.hist(scores[0], _edges(scores[0]).tolist(), color="0.65", edgecolor="k")
        mean = f"{scores[0].mean():.1f} %" if metric == "accuracy" else f"{scores[0].mean():.3g}"
        axes.axvline(scores[0].mean(), color="k", ls="--", label=f"mean {mean}")
        if metric == "accuracy" and about.chance is not None:
            axes.axvline(100 * about.chance, color="0.5", ls=":", label=f"chance {100 * about.chance:.3g} %")
        axes.set(xlabel=label_of(metric), ylabel="test tasks", title=about.title(f"{tasks} test tasks{left_out}"))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def _edges(scores: np.ndarray) -> np.ndarray:
    """Edges of about 20 histogram bins.

    If scores lie on a grid, such as the multiples of 1/Q for accuracies on Q queries, each bin covers the same number
    of possible scores.
    """
    values = np.unique(scores.round(6))
    steps = np.diff(values)
    grid = steps.min() if len(steps) else 1.0
    # If one score is very large, every number is a multiple of the grid up to rounding.
    dwarfed = len(steps) > 0 and values[-1] - values[0] > 1e6 * grid
    if len(steps) == 0 or dwarfed or not np.allclose(steps / grid, (steps / grid).round(), atol=1e-2):
        return np.histogram_bin_edges(scores, bins=20)
    width = grid * max(1, round((values[-1] - values[0]) / grid / 20))
    count = int(np.ceil((values[-1] - values[0] + grid / 2) / width)) or 1
    edges: NDArray[Any] = values[0] - grid / 2 + width * np.arange(count + 1)
    return edges


def named_tasks_figure(columns: dict[str, np.ndarray], method: str = "") -> Figure | None:
    """Draw a panel for each metric with one row per task, the best test score on top.

    The line from the test to the training score of a task is its generalisation gap.

    Args:
        columns: Columns of `per_task.csv` by name.
        method: Name of the method, for the title.

    Returns:
        The figure; None without tasks.
    """
    metrics = list(dict.fromkeys(columns["metric"].tolist()))
    if not metrics:
        return None
    panels = [{name: column[columns["metric"] == metric] for name, column in columns.items()} for metric in metrics]
    sizes = [MARGIN + ROW * max(heights(named_rows(len(panel["task"])))[-1] + 1, 6) for panel in panels]
    figure = Figure((WIDTH, sum(sizes)), layout="constrained")
    axes = figure.subplots(len(panels), height_ratios=sizes, squeeze=False)[:, 0]
    for panel, metric, panel_axes in zip(panels, metrics, axes, strict=True):
        _draw(panel_axes, panel, str(metric))
    tasks = len(columns["task"])
    figure.suptitle(About(method).title(f"{tasks} task{'s' if tasks > 1 else ''} (number of training examples)"))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _draw(axes: Axes, columns: dict[str, np.ndarray], metric: str) -> None:
    """Draw the rows of the tasks with the same metric, from their columns of `per_task.csv`."""
    scale = scale_of(metric)
    scores = {stage: scale * np.asarray(columns[stage], float) for stage in ("train", "val", "test")}
    better = columns.get("better", np.array([]))
    sign = np.where(better == "lower", -1, 1) if len(better) else 1
    order = np.argsort(np.nan_to_num(sign * scores["test"], nan=-np.inf))
    low, named = -1.0 if metric == "r2" else -np.inf, named_rows(len(order))
    rows = heights(named)

    # +∞ is not drawn; scores of an R² below −1, including −∞, are drawn there; other metrics have no lower end.
    def shown(values: np.ndarray) -> np.ndarray:
        ended = np.maximum(values[order], low)
        return np.where(np.isfinite(ended), ended, np.nan)

    axes.hlines(rows, shown(scores["test"]), shown(scores["train"]), color="0.75", lw=1, zorder=1)
    marks = [("training", "train", "|", "0.4"), ("validation", "val", "o", "white"), ("test", "test", "o", "k")]
    for label, stage, marker, face in marks:
        for large in (True, False):  # thin rows have small markers
            if (here := named == large).any():
                style = {"mfc": face, "mec": "k", "ms": 5 if large else 2.5, "mew": 0.8 if large else 0.5, "zorder": 2}
                axes.plot(shown(scores[stage])[here], rows[here], marker, label=label if large else None, **style)  # type: ignore[arg-type]
    constant = scale * np.asarray(columns["constant"], float) if "constant" in columns else np.full(len(order), np.nan)
    if np.isfinite(constant).any():
        label = "the best constant prediction"
        axes.plot(shown(constant), rows, "x", color="0.55", ms=4, mew=0.8, label=label, zorder=1.5)
    examples = np.asarray(columns["train_examples"], float)[order]
    names = [f"{shortened(name)} ({count:.0f})" for name, count in zip(columns["task"][order], examples, strict=True)]
    name_rows(axes, rows, named, names, "per_task.csv")
    below = f", below {low:g} drawn there" if any((values < low).any() for values in scores.values()) else ""
    axes.set_xlabel(label_of(metric) + below)


@matplotlib.rc_context({"text.parse_math": False})  # names of runs are text
def compare_training(runs: Sequence[str | Path], out: str | Path, metric: str = "val/accuracy") -> Path:
    """Draw a metric of several runs against the training step, with its 95 % interval shaded if it was logged.

    Args:
        runs: Run directories.
        out: File of the figure, such as `curves.png`; its suffix sets the format.
        metric: Name of the metric in `metrics.csv`, such as `val/accuracy`.

    Returns:
        The file of the figure.

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
    scale = scale_of(short_name)
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    drawn, labels = [], []
    chances: set[float] = set()
    tasks: set[int] = set()
    for number, run in enumerate(map(Path, runs)):
        finished = (run / "results.json").is_file()
        about = About.of(read_results(run)) if finished else About()
        labels.append(f"{run}{f' ({about.method})' if about.method else ''}")
        if about.chance is not None and stage != "train":  # it is that of validation and test tasks
            chances.add(about.chance)
        file = run / "metrics.csv"
        if not file.is_file():
            raise UserError(f"{run}: there is no metrics.csv; name a run directory, such as runs/protonet_glyphs/0")
        columns = columns_of(file)
        if metric not in columns:
            logged = ", ".join(sorted(name for name in columns if name.startswith("val/") and "_step_" not in name))
            raise UserError(f"--metric {metric}: {file} has no such column; it has {logged or 'no validation metrics'}")
        if not (finite := np.isfinite(columns[metric])).any():
            raise UserError(f"--metric {metric}: {file} has no finite value of it; leave the run out")
        step, value = columns["step"][finite], scale * columns[metric][finite]
        if (counted := columns.get(f"{metric}_tasks")) is not None:
            tasks |= {int(count) for count in counted[finite] if np.isfinite(count)}
        line, marker = LINES[number % len(LINES)]
        shade = str(0.7 * (number // len(LINES) % 3) / 2)
        drawn += axes.plot(step, value, ls=line, marker=marker, ms=3, color=shade)
        if (interval := columns.get(f"{metric}_ci95")) is not None:
            low, high = band(value, scale * interval[finite])
            axes.fill_between(step, low, high, color=shade, alpha=0.12, lw=0)
    axes.set(xlabel="training step", ylabel=label_of(short_name))
    shade = "; shade: 95 % interval over tasks" if axes.collections else ""
    over = f"; mean over {' to '.join(map(str, sorted({min(tasks), max(tasks)})))} tasks" if tasks else ""
    axes.set_title(f"{STAGES.get(stage, stage)}{over}{shade}", fontsize=9)
    # Lines are passed explicitly, since matplotlib leaves out labels that begin with "_".
    for chance in sorted(chances):
        draw_chance(axes, short_name, chance)
    at_chance = axes.lines[len(drawn) :]
    labels += [str(line.get_label()) for line in at_chance]
    axes.legend([*drawn, *at_chance], labels, frameon=False, fontsize=7)
    save_figure(figure, target)
    return target


class Point(NamedTuple):
    """The score at one way and shot.

    Attributes:
        ways: Number N of classes; 0 in regression.
        shots: Number K of support examples, per class in classification.
        score: Mean over tasks; for the accuracy in [0, 1].
        interval: Half-width of its 95 % interval.
        tasks: Number of tasks.
    """

    ways: int
    shots: int
    score: float
    interval: float
    tasks: int

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

    Args:
        points: Scores, all over the same number of tasks.
        metric: Name of the score, such as `accuracy`.
        left_out: Ways and shots that could not be measured, for the title.
        method: Name of the method, for the title.
    """
    figure = Figure((6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    scale = scale_of(metric)
    for (line, marker), ways in zip(LINES * len(points), sorted({p.ways for p in points}), strict=False):
        of_way = sorted(p for p in points if p.ways == ways)
        axes.errorbar(
            [p.shots for p in of_way],
            [scale * p.score for p in of_way],
            [scale * p.interval for p in of_way],
            ls=line,
            marker=marker,
            color="k",
            ms=4,
            capsize=3,
            label=f"{ways}-way (chance {100 / ways:.0f} %)" if ways else None,
        )
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
