"""Write and print the results of a test of several ways and shots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_meta.fitting.evaluation import Evaluation
from lightning_meta.report.saving import save_figure
from lightning_meta.report.shot_and_way import draw_points, write_points
from lightning_meta.run.results import write_per_task, write_results

LISTED = ("ways", "shots", "queries", "tasks")


def write_grid(directory: Path, found: Sequence[Evaluation], about: Mapping[str, Any]) -> None:
    """Write `grid.csv`, `per_task_<N>way_<K>shot.csv`, `figures/shot_and_way.png`, then `results.json`.

    Args:
        directory: The folder to write to.
        found: The evaluations.
        about: Further entries of `results.json`; plain data.
    """
    for each in found:
        ways = f"{each.ways}way_" if each.ways else ""
        write_per_task(directory / f"per_task_{ways}{each.shots}shot.csv", each.per_task)
    points, metric = [each.point for each in found], found[0].metric
    write_points(points, metric, directory / "grid.csv")
    try:
        save_figure(draw_points(points, metric), directory / "figures" / "shot_and_way.png")
    finally:  # results are written even if the figure fails
        write_results(directory, {}, {"grid": [_plain(each) for each in found], **about})


def print_grid(found: Sequence[Evaluation], directory: Path) -> None:
    """Print the score at each way and shot with its 95 % interval, the chance level and the number of tasks.

    Args:
        found: The evaluations.
        directory: The run directory.
    """
    shots = list(dict.fromkeys(each.shots for each in found))
    chance = any(each.ways for each in found)
    table = Table(f"test {found[0].metric}", *(f"{k}-shot" for k in shots), *(["chance"] if chance else []), "tasks")
    for ways in dict.fromkeys(each.ways for each in found):
        row = {each.shots: each for each in found if each.ways == ways}
        guessed = [f"{100 / ways:.2f} %"] if ways else []
        scores = (_shown(row[k]) for k in shots)
        table.add_row(f"{ways}-way" if ways else "", *scores, *guessed, str(row[shots[0]].tasks))
    table.caption = "mean over tasks ± half-width of its 95 % interval"
    Console(markup=False, emoji=False).print(table)
    print(f"written to {directory}")


def _shown(found: Evaluation) -> str:
    if found.metric == "accuracy":
        return f"{100 * found.score:.2f} ± {100 * found.interval:.2f} %"
    return f"{found.score:.4g} ± {found.interval:.4g}"


def _plain(found: Evaluation) -> dict[str, Any]:
    """An evaluation without its table of tasks; a number that is not finite becomes null, as JSON has none."""
    numbers = {name.removeprefix("test/"): v for name, v in found.metrics.items() if name != "test/tasks"}
    chance = found.point.chance
    sizes = {name: getattr(found, name) for name in LISTED}
    return {**sizes, "chance": chance, **{name: v if math.isfinite(v) else None for name, v in numbers.items()}}
