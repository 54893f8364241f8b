"""Compare the rungs of a ladder with its linear models, and mark those that do not beat them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.report.transfer.matching import Method, compared_tasks
from lightning_meta.report.transfer.reading import read_results, read_run

SCORE, SECONDS = "test/score", "train_time_s"  # the score is the mean over tasks of each task's metric


@dataclass(frozen=True)
class LinearComparison:
    """Scores and training times of all rungs of a ladder that has linear models.

    Attributes:
        scores: Mean `test/score` over seeds by rung, higher is better.
        seconds: Mean training time over seeds by rung.
        linear: Names of the rungs that are linear models.
        at_chance: By linear rung, the number of tasks in which its mean over seeds is not better than a constant
            prediction, and the number of all tasks; rungs that are better in more than half of them are left out.
    """

    scores: Mapping[str, float]
    seconds: Mapping[str, float]
    linear: Sequence[str]
    at_chance: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def unbeaten(self) -> dict[str, list[str]]:
        """The linear rungs that each other rung does not beat; rungs that beat all of them are left out."""
        others = {rung: score for rung, score in self.scores.items() if rung not in self.linear}
        not_beaten = {rung: [n for n in self.linear if score <= self.scores[n]] for rung, score in others.items()}
        return {rung: linear for rung, linear in not_beaten.items() if linear}

    @property
    def lines(self) -> list[str]:
        """One line per marked rung, for the report."""
        return [
            f"{rung} does not beat {' and '.join(f'{n} ({self.scores[n]:.3f})' for n in linear)}: its {SCORE} is "
            f"{self.scores[rung]:.3f}, mean over seeds.{self._of_chance(linear)}"
            for rung, linear in self.unbeaten.items()
        ]

    def _of_chance(self, linear: Sequence[str]) -> str:
        """A sentence for each of these linear rungs that is itself at chance level."""
        return "".join(
            f" {name} itself is at chance level: it is not better than a constant in {self.at_chance[name][0]} of "
            f"{self.at_chance[name][1]} tasks."
            for name in linear
            if name in self.at_chance
        )

    def show(self) -> None:
        """Print a table of all rungs."""
        table = Table(title=Text("mean over tasks and seeds"), box=SIMPLE_HEAD)
        for column in ("rung", SCORE, "seconds", ""):
            table.add_column(column, justify="right" if column in (SCORE, "seconds") else "left")
        unbeaten = self.unbeaten
        for rung, score in self.scores.items():
            names = [f"{name} (at chance level)" if name in self.at_chance else name for name in unbeaten.get(rung, ())]
            mark = f"does not beat {' and '.join(names)}" if names else ""
            if rung in self.at_chance:
                mark = "at chance level"
            table.add_row(*map(Text, (rung, f"{score:.3f}", f"{self.seconds[rung]:.1f}", mark)))
        Console().print(table)


def compare_with_linear(runs: Sequence[PlannedRun]) -> LinearComparison | None:
    """Compare the rungs of a ladder with its linear models.

    Returns:
        The comparison; None without a linear model.
    """
    by_rung: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.directory is not None and (results := read_results(run.directory)).get(SCORE) is not None:
            by_rung.setdefault(run.rung, []).append(results)
    linear = [rung for rung, seeds in by_rung.items() if all(results.get("solved") for results in seeds)]
    scores, seconds = (
        {rung: fmean(results[key] for results in seeds) for rung, seeds in by_rung.items()} for key in (SCORE, SECONDS)
    )
    by_linear = {rung: [run.directory for run in runs if run.rung == rung and run.directory] for rung in linear}
    chances = {
        rung: _tasks_at_chance(Method(rung, tuple(map(read_run, directories))))
        for rung, directories in by_linear.items()
    }
    at_chance = {rung: (failed, count) for rung, (failed, count) in chances.items() if 2 * failed >= count > 0}
    return LinearComparison(scores, seconds, linear, at_chance) if linear else None


def _tasks_at_chance(method: Method) -> tuple[int, int]:
    """Return the number of tasks in which runs are on average not better than a constant, and of those compared."""
    tasks, compared = method.runs[0].tasks, compared_tasks([method])
    failed = [tasks[n].sign * (method.mean(n, "test") - method.mean(n, "constant")) <= 0 for n in compared]
    return sum(failed), len(compared)
