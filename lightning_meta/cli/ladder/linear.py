"""Compare the rungs of a ladder with its linear models, and mark those that do not beat them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.report.transfer.reading import read_results

SCORE, SECONDS = "test/score", "train_time_s"  # the score is the mean over tasks of each task's metric


@dataclass(frozen=True)
class LinearComparison:
    """Scores and training times of all rungs of a ladder that has linear models.

    Attributes:
        scores: Mean `test/score` over seeds by rung, higher is better.
        seconds: Mean training time over seeds by rung.
        linear: Names of the rungs that are linear models.
    """

    scores: Mapping[str, float]
    seconds: Mapping[str, float]
    linear: Sequence[str]

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
            f"{self.scores[rung]:.3f}, mean over seeds."
            for rung, linear in self.unbeaten.items()
        ]

    def show(self) -> None:
        """Print a table of all rungs."""
        table = Table(title=Text("mean over tasks and seeds"), box=SIMPLE_HEAD)
        for column in ("rung", SCORE, "seconds", ""):
            table.add_column(column, justify="right" if column in (SCORE, "seconds") else "left")
        unbeaten = self.unbeaten
        for rung, score in self.scores.items():
            mark = f"does not beat {' and '.join(unbeaten[rung])}" if rung in unbeaten else ""
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
    return LinearComparison(scores, seconds, linear) if linear else None
