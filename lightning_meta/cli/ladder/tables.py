"""The last tables of a ladder: comparison with its linear models, and verdicts at equal budget after tuning."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.cli.ladder.tuning import SearchResult
from lightning_meta.report.transfer import TransferReport
from lightning_meta.report.transfer.intervals import method_verdicts
from lightning_meta.report.transfer.matching import Method, compared_tasks
from lightning_meta.report.transfer.reading import read_run
from lightning_meta.report.transfer.results import SEEDS_FOR_VERDICTS
from lightning_meta.run.tables import write_table

SCORE, SECONDS = "test/score", "train_time_s"  # the score is the mean over tasks of each task's metric
FILE = "verdicts.csv"
COLUMNS = (
    *("rung", "test_score", "delta", "low", "high", "p_holm", "smallest", "verdict"),
    *("ms_per_step", "peak_memory_mb", "steps", "best_trial", "steps_of_trials", "settings", "weights"),
)
NAMED_WEIGHTS = 4  # with more tasks, only the range of the weights is shown


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table with a row for each rung; the columns of text are `rung`, `settings` and `verdict`."""
    table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in columns:
        text = column in ("rung", "settings", "verdict")
        table.add_column(column, justify="left" if text else "right", no_wrap=column != "settings")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def compare_with_linear(runs: Sequence[PlannedRun]) -> list[tuple[Table, list[str]]]:
    """Compare the rungs with the linear models in a table, with notes; empty without linear models."""
    by_rung = _results(runs)
    at_chance = {}
    linear = [rung for rung, seeds in by_rung.items() if all(results.get("solved") for results in seeds)]
    for rung in linear:
        method = Method(rung, tuple(read_run(run.directory) for run in runs if run.rung == rung and run.directory))
        tasks, compared = method.runs[0].tasks, compared_tasks([method])
        failed = [tasks[n].sign * (method.mean(n, "test") - method.mean(n, "constant")) <= 0 for n in compared]
        if failed and 2 * sum(failed) >= len(failed):
            at_chance[rung] = (sum(failed), len(failed))
    scores, seconds = ({rung: _mean(seeds, key) for rung, seeds in by_rung.items()} for key in (SCORE, SECONDS))
    return [linear_table(scores, seconds, linear, at_chance)] if linear else []


def linear_table(
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
    linear: Collection[str],
    at_chance: Mapping[str, tuple[int, int]],
) -> tuple[Table, list[str]]:
    """Mark the rungs that do not beat a linear model, by means over seeds.

    `at_chance` has, for linear rungs that are not better than a constant prediction in half of the tasks or more, the
    number of these tasks and of all.
    """
    rows, lines = [], []
    for rung, score in scores.items():
        unbeaten = [name for name in linear if rung not in linear and score <= scores[name]]
        names = [f"{name} (at chance level)" if name in at_chance else name for name in unbeaten]
        verdict = f"does not beat {' and '.join(names)}" if names else "at chance level" if rung in at_chance else ""
        rows.append([rung, f"{score:.3f}", f"{seconds[rung]:.1f}", verdict])
        if unbeaten:
            unbeaten_scores = " and ".join(f"{name} ({scores[name]:.3f})" for name in unbeaten)
            line = f"{rung} does not beat {unbeaten_scores}: its {SCORE} is {score:.3f}, mean over seeds."
            chance = "{} itself is at chance level: it is not better than a constant in {} of {} tasks.".format
            lines.append(" ".join([line, *(chance(name, *at_chance[name]) for name in unbeaten if name in at_chance)]))
    return _table("mean over tasks and seeds", ("rung", SCORE, "seconds", "verdict"), rows), lines


def verdict_rows(
    report: TransferReport, runs: Sequence[PlannedRun], search_results: Mapping[str, SearchResult]
) -> list[dict[str, Any]]:
    """The cost and the verdict of each rung by the names in `COLUMNS`, the baseline first; means are over seeds."""
    verdict_of = method_verdicts({method.method: method.for_method for method in report.methods})
    by_rung, rows = _results(runs), []
    for rung in sorted(by_rung, key=lambda rung: rung != report.baseline):
        seeds, searched, verdict = by_rung[rung], search_results[rung], verdict_of.get(rung)
        steps = sum(results["steps"] for results in seeds)
        statement = ("mean", "low", "high", "p_holm", "smallest", "verdict")
        cells = (
            *(rung, _mean(seeds, SCORE), *(getattr(verdict, name, "") for name in statement)),
            *(1000 * sum(results[SECONDS] for results in seeds) / max(steps, 1), _mean(seeds, "peak_memory_mb")),
            *(steps + searched.steps, searched.trial, searched.steps, searched.settings, searched.weights),
        )
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def write_verdicts(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `verdicts.csv`, with the weights of all tasks."""
    cells = [["" if _missing(value) else _as_json(value) for value in row.values()] for row in rows]
    write_table(folder / FILE, [COLUMNS, *cells])


def verdict_table(
    report: TransferReport, rows: Sequence[Mapping[str, Any]], search_results: Mapping[str, SearchResult]
) -> tuple[Table, list[str]]:
    """The table and the conclusions of `verdict_rows`."""
    verdict_of = {row["rung"]: row["verdict"] for row in rows if row["verdict"]}
    better = [rung for rung, verdict in verdict_of.items() if verdict == "better"]
    beat = f"{' and '.join(better)} beat{'s' * (len(better) == 1)}" if better else "no method is shown to beat"
    result = f"{beat} {report.baseline}"
    if set(verdict_of.values()) == {"too few seeds"}:
        result = f"there are no verdicts, which need {SEEDS_FOR_VERDICTS} seeds"
    steps = {row["rung"]: row["steps"] for row in rows}
    budget = f"At {steps[report.baseline]:,} training steps for each method, trials included"
    if len(set(steps.values())) > 1:
        budget = f"At unequal budgets ({', '.join(f'{rung} {n:,}' for rung, n in steps.items())} training steps)"
    lines = [f"{budget}, {result}."]
    if any(method.has_errors for method in report.methods):
        lines.append(
            "A metric of which lower is better enters test/score with a minus sign (an error in standard deviations of "
            "its targets), and Δ over that of a constant prediction: Δ is not the difference of the scores."
        )
    ends = [f"{_last(name)} of {rung} ({end})" for rung, r in search_results.items() for name, end in r.ends.items()]
    if ends:
        lines.append(f"The best value is an end of those tried, so another range may be better: {', '.join(ends)}.")
    tested = sum(bool(row["verdict"]) and not _missing(row["p_holm"]) for row in rows)
    if tested:
        lines.append(
            f"Verdicts over seeds are corrected for {tested} method{'s' * (tested != 1)} (Holm's procedure at 5 %); an "
            "interval is of one method alone."
        )
    titles = ("rung", SCORE, "Δ ↑", "95 % interval", "smallest Δ shown", "ms a step", "peak MB", "settings", "verdict")
    return _table(f"against {report.baseline}, mean over tasks and seeds", titles, list(map(_shown, rows))), lines


def _shown(row: Mapping[str, Any]) -> list[str]:
    change = ["", "", ""]
    if row["verdict"]:
        interval = "–" if _missing(row["low"]) else f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        change = [f"{row['delta']:+.4f}", interval, "–" if _missing(row["smallest"]) else f"±{row['smallest']:.4f}"]
    memory = "–" if _missing(row["peak_memory_mb"]) else f"{row['peak_memory_mb']:.0f}"
    settings, weights = [f"{_last(name)} {value}" for name, value in row["settings"].items()], row["weights"]
    if 0 < len(weights) <= NAMED_WEIGHTS:
        settings.append("weights " + ", ".join(f"{task} {weight:.2f}" for task, weight in weights.items()))
    elif weights:
        settings.append(f"weights {min(weights.values()):.2f} to {max(weights.values()):.2f}")
    cells = [row["rung"], f"{row['test_score']:.4f}", *change, f"{row['ms_per_step']:.1f}", memory]
    return [*cells, "; ".join(settings) or "as in the file", row["verdict"] or "baseline"]


def _results(runs: Sequence[PlannedRun]) -> dict[str, list[dict[str, Any]]]:
    """The results of the finished runs by rung."""
    by_rung: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.results is not None:
            by_rung.setdefault(run.rung, []).append(run.results)
    return by_rung


def _mean(seeds: Sequence[Mapping[str, Any]], name: str) -> float:
    return fmean(math.nan if results.get(name) is None else float(results[name]) for results in seeds)


def _missing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _as_json(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping) else value


def _last(option: str) -> str:
    return option.rpartition(".")[2]
