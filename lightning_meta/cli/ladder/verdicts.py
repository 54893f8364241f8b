"""The last table of a ladder that searches: cost and verdict of each rung against the baseline at equal budget."""

from __future__ import annotations

import csv
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

from lightning_meta.cells import as_cells
from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.cli.ladder.tuning import Found
from lightning_meta.report.transfer import TransferReport
from lightning_meta.report.transfer.verdicts import MethodVerdict, method_verdicts
from lightning_meta.run.files import replacing

FILE = "verdicts.csv"
COLUMNS = (
    *("rung", "test_score", "delta", "low", "high", "p_holm", "smallest", "verdict"),
    *("ms_per_step", "peak_memory_mb", "steps", "best_trial", "steps_of_trials", "settings", "weights"),
)
NAMED_WEIGHTS = 4  # of more tasks, the range of their weights is shown


@dataclass(frozen=True)
class Row:
    """One rung; figures are means over seeds.

    Attributes:
        rung: Its name.
        score: `test/score`.
        verdict: Against the baseline; None for the baseline.
        milliseconds: Of training for each step, validation included.
        memory: The peak of a run in MB; NaN where it is not known.
        steps: All training steps: those of its trials, and those of its runs.
        found: What its search found.
    """

    rung: str
    score: float
    verdict: MethodVerdict | None
    milliseconds: float
    memory: float
    steps: int
    found: Found

    @property
    def settings(self) -> str:
        """What the search found, in words."""
        settings = [f"{name.rpartition('.')[2]} {value}" for name, value in self.found.settings.items()]
        weights = self.found.weights
        if 0 < len(weights) <= NAMED_WEIGHTS:
            settings.append("weights " + ", ".join(f"{task} {weight:.2f}" for task, weight in weights.items()))
        elif weights:
            settings.append(f"weights {min(weights.values()):.2f} to {max(weights.values()):.2f}")
        return "; ".join(settings) or "as in the file"


@dataclass(frozen=True)
class Verdicts:
    """All rungs of a ladder that searches.

    Attributes:
        baseline: The rung that the others are compared with.
        rows: One a rung, the baseline's first.
    """

    baseline: str
    rows: Sequence[Row]

    @property
    def lines(self) -> list[str]:
        """What the table comes to, for the report."""
        others = {row.rung: row.verdict.verdict for row in self.rows if row.verdict is not None}
        better = [rung for rung, verdict in others.items() if verdict == "better"]
        beat = f"{' and '.join(better)} beat{'s' * (len(better) == 1)}" if better else "no method is shown to beat"
        steps = {row.rung: row.steps for row in self.rows}
        budget = f"At {steps[self.baseline]:,} training steps for each method, trials included"
        if len(set(steps.values())) > 1:
            budget = f"At unequal budgets ({', '.join(f'{rung} {n:,}' for rung, n in steps.items())} training steps)"
        tested = sum(row.verdict is not None and math.isfinite(row.verdict.p_holm) for row in self.rows)
        return [
            f"{budget}, {beat} {self.baseline}.",
            f"Verdicts over seeds are corrected for {tested} method{'s' * (tested != 1)} (Holm's procedure at 5 %); an "
            "interval is of one method alone.",
        ]

    def show(self) -> None:
        """Print the table."""
        title = f"against {self.baseline}, mean over tasks and seeds"
        table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for column in ("rung", "test/score", "Δ ↑", "95 % interval", "smallest shown", "ms a step", "MB"):
            table.add_column(column, justify="left" if column == "rung" else "right", no_wrap=True)
        table.add_column("found")
        table.add_column("verdict")
        for row in self.rows:
            of = row.verdict
            change = ["", "", ""]
            if of is not None:
                known = math.isfinite(of.low)
                interval = f"[{of.low:+.4f}, {of.high:+.4f}]" if known else "–"
                change = [f"{of.mean:+.4f}", interval, f"±{of.smallest:.4f}" if math.isfinite(of.smallest) else "–"]
            memory = f"{row.memory:.0f}" if math.isfinite(row.memory) else "–"
            cells = [row.rung, f"{row.score:.4f}", *change, f"{row.milliseconds:.1f}", memory, row.settings]
            table.add_row(*map(Text, [*cells, of.verdict if of else "baseline"]))
        console = Console()
        console = console if console.is_terminal else Console(width=max(console.width, 160))
        console.print(table)
        console.print(Text(self.lines[0]))

    def write(self, folder: Path) -> None:
        """Write the table as CSV, with all weights.

        Args:
            folder: That of the report.
        """
        names = ("mean", "low", "high", "p_holm", "smallest", "verdict")
        with replacing(folder / FILE) as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for row in self.rows:
                found = row.found
                searched = [found.trial, found.steps, json.dumps(found.settings), json.dumps(found.weights)]
                figures = [row.score, *(getattr(row.verdict, name, "") for name in names), row.milliseconds, row.memory]
                known = ["" if isinstance(of, float) and not math.isfinite(of) else of for of in figures]
                writer.writerow(as_cells([row.rung, *known, row.steps, *searched]))


def verdicts(report: TransferReport, runs: Sequence[PlannedRun], found: Mapping[str, Found]) -> Verdicts:
    """The cost and the verdict of each rung.

    Args:
        report: The comparison of the rungs.
        runs: All runs, finished.
        found: What the search of each rung found.
    """
    of_rungs: dict[str, list[dict[str, Any]]] = {rung: [] for rung in (report.baseline, *found)}
    for run in runs:
        if run.directory is not None:
            text = (run.directory / "results.json").read_text(encoding="utf-8")
            of_rungs[run.rung].append(json.loads(text))
    by_name = method_verdicts({of.method: of.for_method for of in report.methods})
    rows = []
    for rung, results in of_rungs.items():
        steps = sum(of["steps"] for of in results)
        rows.append(
            Row(
                rung,
                fmean(_number(of, "test/score") for of in results),
                by_name.get(rung),
                1000 * sum(of["train_time_s"] for of in results) / max(steps, 1),
                fmean(_number(of, "peak_memory_mb") for of in results),
                steps + found[rung].steps,
                found[rung],
            )
        )
    return Verdicts(report.baseline, rows)


def _number(results: Mapping[str, Any], name: str) -> float:
    value = results.get(name)
    return math.nan if value is None else float(value)
