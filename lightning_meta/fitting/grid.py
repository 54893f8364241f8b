"""Write and print the results of a test with several numbers of ways and shots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_meta.fitting.evaluation import Evaluation
from lightning_meta.report.drawing import save_figure
from lightning_meta.report.figures import draw_points, write_points
from lightning_meta.run.results import write_per_task, write_results

LISTED = ("ways", "shots", "queries", "tasks")


def write_grid(directory: Path, evaluations: Sequence[Evaluation], about: Mapping[str, Any]) -> None:
    """Write `grid.csv`, `per_task_<N>way_<K>shot.csv`, `figures/shot_and_way.png`, then `results.json`.

    Args:
        directory: The folder to write to.
        evaluations: The evaluations, one for each way and shot.
        about: Further entries of `results.json`; plain data.
    """
    for each in evaluations:
        ways = f"{each.ways}way_" if each.ways else ""
        write_per_task(directory / f"per_task_{ways}{each.shots}shot.csv", each.per_task)
    points, metric = [each.point for each in evaluations], evaluations[0].metric
    write_points(points, metric, directory / "grid.csv")
    try:
        save_figure(draw_points(points, metric), directory / "figures" / "shot_and_way.png")
    finally:  # results are written even if the figure fails
        write_results(directory, {}, {"grid": [_plain(each) for each in evaluations], **about})


def print_grid(evaluations: Sequence[Evaluation], directory: Path) -> None:
    """Print the score at each way and shot with its 95 % interval, the chance level and the number of tasks.

    Args:
        evaluations: The evaluations, one for each way and shot.
        directory: The run directory.
    """
    shots = list(dict.fromkeys(each.shots for each in evaluations))
    chance = any(each.ways for each in evaluations)
    table = Table(
        f"test {evaluations[0].metric}", *(f"{k}-shot" for k in shots), *(["chance"] if chance else []), "tasks"
    )
    for ways in dict.fromkeys(each.ways for each in evaluations):
        row = {each.shots: each for each in evaluations if each.ways == ways}
        chance_level = [f"{100 / ways:.2f} %"] if ways else []
        scores = (_shown(row[k]) for k in shots)
        table.add_row(f"{ways}-way" if ways else "", *scores, *chance_level, str(row[shots[0]].tasks))
    table.caption = "mean over tasks ± half-width of its 95 % interval"
    Console(markup=False, emoji=False).print(table)
    print(f"written to {directory}")


def _shown(evaluation: Evaluation) -> str:
    single = math.isnan(evaluation.interval)  # of a single task there is no interval
    if evaluation.metric == "accuracy":
        return f"{100 * evaluation.score:.2f}{'' if single else f' ± {100 * evaluation.interval:.2f}'} %"
    return f"{evaluation.score:.4g}{'' if single else f' ± {evaluation.interval:.4g}'}"


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation without its table of tasks; numbers that are not finite become null, since JSON has no NaN."""
    numbers = {name.removeprefix("test/"): v for name, v in evaluation.metrics.items() if name != "test/tasks"}
    chance = evaluation.point.chance
    sizes = {name: getattr(evaluation, name) for name in LISTED}
    return {**sizes, "chance": chance, **{name: v if math.isfinite(v) else None for name, v in numbers.items()}}
