"""The last table of a tuned ladder: cost and verdict of each rung against the baseline, at equal budget."""

from __future__ import annotations

import json
import math
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
from lightning_meta.cli.ladder.tuning import SearchResult
from lightning_meta.report.transfer import TransferReport
from lightning_meta.report.transfer.intervals import method_verdicts
from lightning_meta.report.transfer.reading import read_results
from lightning_meta.report.transfer.results import SEEDS_FOR_VERDICTS, MethodVerdict
from lightning_meta.run.tables import write_table

FILE = "verdicts.csv"
COLUMNS = (
    *("rung", "test_score", "delta", "low", "high", "p_holm", "smallest", "verdict"),
    *("ms_per_step", "peak_memory_mb", "steps", "best_trial", "steps_of_trials", "settings", "weights"),
)
NAMED_WEIGHTS = 4  # with more tasks, only the range of the weights is shown


@dataclass(frozen=True)
class Row:
    """One rung; figures are means over seeds.

    Attributes:
        rung: Name of the rung.
        score: The test score, `test/score`.
        verdict: Verdict against the baseline; None for the baseline.
        milliseconds: Training time per step in ms, including validation.
        memory: Peak memory of a run in MB; NaN if unknown.
        steps: Training steps of all trials and runs.
        search_result: Result of the search.
    """

    rung: str
    score: float
    verdict: MethodVerdict | None
    milliseconds: float
    memory: float
    steps: int
    search_result: SearchResult

    @property
    def settings(self) -> str:
        """The tuned settings and weights as text."""
        settings = [f"{name.rpartition('.')[2]} {value}" for name, value in self.search_result.settings.items()]
        weights = self.search_result.weights
        if 0 < len(weights) <= NAMED_WEIGHTS:
            settings.append("weights " + ", ".join(f"{task} {weight:.2f}" for task, weight in weights.items()))
        elif weights:
            low, high = (f"{end(weights.values()):.2f}" for end in (min, max))
            settings.append(f"weights {low} to {high}" if low != high else f"all weights {low}")
        return "; ".join(settings) or "as in the file"


@dataclass(frozen=True)
class Verdicts:
    """All rungs of a tuned ladder.

    Attributes:
        baseline: The rung that the others are compared with.
        rows: One row per rung, that of the baseline first.
        errors: Whether a task is compared by an error, of which lower is better.
    """

    baseline: str
    rows: Sequence[Row]
    errors: bool = False

    @property
    def lines(self) -> list[str]:
        """The conclusions, for the report."""
        others = {row.rung: row.verdict.verdict for row in self.rows if row.verdict is not None}
        better = [rung for rung, verdict in others.items() if verdict == "better"]
        beat = f"{' and '.join(better)} beat{'s' * (len(better) == 1)}" if better else "no method is shown to beat"
        result = f"{beat} {self.baseline}"
        if others and set(others.values()) == {"too few seeds"}:
            result = f"there are no verdicts, which need {SEEDS_FOR_VERDICTS} seeds"
        steps = {row.rung: row.steps for row in self.rows}
        budget = f"At {steps[self.baseline]:,} training steps for each method, trials included"
        if len(set(steps.values())) > 1:
            budget = f"At unequal budgets ({', '.join(f'{rung} {n:,}' for rung, n in steps.items())} training steps)"
        tested = sum(row.verdict is not None and math.isfinite(row.verdict.p_holm) for row in self.rows)
        correction = (
            f"Verdicts over seeds are corrected for {tested} method{'s' * (tested != 1)} (Holm's procedure at 5 %); an "
            "interval is of one method alone."
        )
        return [f"{budget}, {result}.", *self._units, *self._ends, *([correction] if tested else [])]

    @property
    def _units(self) -> list[str]:
        """A line about the units of errors; none without errors."""
        if not self.errors:
            return []
        return [
            "A metric of which lower is better enters test/score with a minus sign (an error in standard deviations of "
            "its targets), and Δ over that of a constant prediction: Δ is not the difference of the scores."
        ]

    @property
    def _ends(self) -> list[str]:
        """A line about settings at an end of those tried; none if there are no such settings."""
        ends = [
            f"{name.rpartition('.')[2]} of {row.rung} ({end})"
            for row in self.rows
            for name, end in row.search_result.ends.items()
        ]
        if not ends:
            return []
        return [f"The best value is an end of those tried, so another range may be better: {', '.join(ends)}."]

    def show(self) -> None:
        """Print the table."""
        title = f"against {self.baseline}, mean over tasks and seeds"
        table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for column in ("rung", "test/score", "Δ ↑", "95 % interval", "smallest Δ shown", "ms a step", "peak MB"):
            table.add_column(column, justify="left" if column == "rung" else "right", no_wrap=True)
        table.add_column("best settings")
        table.add_column("verdict")
        for row in self.rows:
            verdict = row.verdict
            change = ["", "", ""]
            if verdict is not None:
                interval = f"[{verdict.low:+.4f}, {verdict.high:+.4f}]" if math.isfinite(verdict.low) else "–"
                smallest = f"±{verdict.smallest:.4f}" if math.isfinite(verdict.smallest) else "–"
                change = [f"{verdict.mean:+.4f}", interval, smallest]
            memory = f"{row.memory:.0f}" if math.isfinite(row.memory) else "–"
            cells = [row.rung, f"{row.score:.4f}", *change, f"{row.milliseconds:.1f}", memory, row.settings]
            table.add_row(*map(Text, [*cells, verdict.verdict if verdict else "baseline"]))
        console = Console()
        console = console if console.is_terminal else Console(width=max(console.width, 160))
        console.print(table)
        for line in (self.lines[0], *self._units, *self._ends):
            console.print(Text(line))

    def write(self, folder: Path) -> None:
        """Write the table as CSV, with the weights of all tasks."""
        names = ("mean", "low", "high", "p_holm", "smallest", "verdict")
        rows: list[Sequence[Any]] = [COLUMNS]
        for row in self.rows:
            result = row.search_result
            searched = [result.trial, result.steps, json.dumps(result.settings), json.dumps(result.weights)]
            figures = [row.score, *(getattr(row.verdict, name, "") for name in names), row.milliseconds, row.memory]
            cells = ["" if isinstance(figure, float) and not math.isfinite(figure) else figure for figure in figures]
            rows.append([row.rung, *cells, row.steps, *searched])
        write_table(folder / FILE, rows)


def verdicts(
    report: TransferReport, runs: Sequence[PlannedRun], search_results: Mapping[str, SearchResult]
) -> Verdicts:
    """Compute the cost and the verdict of each rung."""
    by_rung: dict[str, list[dict[str, Any]]] = {rung: [] for rung in (report.baseline, *search_results)}
    for run in runs:
        if run.directory is not None:
            by_rung[run.rung].append(read_results(run.directory))
    verdict_of = method_verdicts({method.method: method.for_method for method in report.methods})
    rows = []
    for rung, seeds in by_rung.items():
        steps = sum(results["steps"] for results in seeds)
        rows.append(
            Row(
                rung,
                fmean(_number(results, "test/score") for results in seeds),
                verdict_of.get(rung),
                1000 * sum(results["train_time_s"] for results in seeds) / max(steps, 1),
                fmean(_number(results, "peak_memory_mb") for results in seeds),
                steps + search_results[rung].steps,
                search_results[rung],
            )
        )
    return Verdicts(report.baseline, rows, any(method.has_errors for method in report.methods))


def _number(results: Mapping[str, Any], name: str) -> float:
    value = results.get(name)
    return math.nan if value is None else float(value)
