"""The score against the number of support examples and of classes, as a table and a figure."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from lightning_meta.report.figures import LINES
from lightning_meta.report.labels import About, label_of, scale_of
from lightning_meta.run.files import replacing


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
    """Write a CSV file with a row for each way and shot.

    Args:
        points: Scores.
        metric: Name of the score, such as `accuracy`.
        file: File to write.
    """
    with replacing(file) as out:
        writer = csv.writer(out)
        writer.writerow(["ways", "shots", metric, f"{metric}_ci95", "chance", "tasks"])
        writer.writerows([p.ways or None, p.shots, p.score, p.interval, p.chance, p.tasks] for p in points)


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
