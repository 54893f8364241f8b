"""The linear rungs of a ladder: what else does not beat them is marked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_meta.cli.ladder.plan import PlannedRun

SCORE, SECONDS = "test/score", "train_time_s"  # the first is the mean over tasks, each by its metric


@dataclass(frozen=True)
class Marked:
    """The rungs of a ladder beside its linear models.

    Attributes:
        scores: By rung, the mean over seeds of `test/score`; a large one is good.
        seconds: By rung, the mean time that training took.
        linear: The rungs that are linear models.
    """

    scores: Mapping[str, float]
    seconds: Mapping[str, float]
    linear: Sequence[str]

    @property
    def unbeaten(self) -> dict[str, list[str]]:
        """By name of the other rungs, the linear ones that they do not beat; rungs that beat all are left out."""
        others = {rung: score for rung, score in self.scores.items() if rung not in self.linear}
        found = {rung: [n for n in self.linear if score <= self.scores[n]] for rung, score in others.items()}
        return {rung: linear for rung, linear in found.items() if linear}

    @property
    def lines(self) -> list[str]:
        """The marks in a line each, for the report."""
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


def marked(runs: Sequence[PlannedRun]) -> Marked | None:
    """Compare the rungs of a ladder with its linear models; None where it has none.

    Args:
        runs: All runs, finished.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.directory is not None and (of := _results(run.directory)).get(SCORE) is not None:
            results.setdefault(run.rung, []).append(of)
    linear = [rung for rung, found in results.items() if all(of.get("solved") for of in found)]
    scores, seconds = ({r: fmean(of[key] for of in found) for r, found in results.items()} for key in (SCORE, SECONDS))
    return Marked(scores, seconds, linear) if linear else None


def _results(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    return found
