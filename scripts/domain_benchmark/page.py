"""The page with scores, times and hashes of the tasks, as Markdown and as one HTML file."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from reproducing.planning import duration

from domain_benchmark.measure import STEPS_OF_AN_EPOCH
from domain_benchmark.results import Result, setting_of


class Table(NamedTuple):
    """A table of strings.

    Attributes:
        title: Title of the table.
        header: Heading of each column.
        rows: Cells of each row.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(results: Sequence[Result]) -> list[Table]:
    """The tables of a page: scores, conditions and tasks.

    Args:
        results: Results in the order of the page.
    """
    methods = list(dict.fromkeys(result.method for result in results))
    by_place = {result.place: result for result in results}
    settings = list(dict.fromkeys((result.domain, result.setting) for result in results))
    scores, tasks = [], []
    for domain, setting in settings:
        there = [by_place[m, domain, setting] for m in methods if (m, domain, setting) in by_place]
        cells = {result.method: _score(result) for result in there}
        about, of_setting = setting_of(there[0])
        chance = f"{100 / of_setting.ways:.3g} %" if of_setting.ways else ""
        what = f"{about.title}, {setting}"
        metric = "MSE ↓" if about.regression else "accuracy ↑"
        scores.append([what, metric, chance, *(cells.get(method, "") for method in methods)])
        queries = f"{of_setting.queries} a class" if of_setting.ways else str(of_setting.queries)
        drawn = {r.episodes for r in there if r.episodes}
        shown = of_setting.sha256[:16]
        if others := sorted(drawn - {of_setting.sha256}):
            shown = f"{others[0][:16]} (not the tasks of the benchmark, {shown})"
        examples = _all(there, lambda r: r.data[:16]) or ("tasks are made" if drawn else "")
        tasks.append([what, str(of_setting.tasks), queries, shown, examples])
    ran = [result for result in results if result.score]
    details = [[*_what(r), _steps(r), r.parameters, _time(r.train_seconds), _time(r.test_seconds), r.seed] for r in ran]
    how = [
        [method, *(_all([r for r in ran if r.method == method], of) for of in (_versions, lambda r: r.machine))]
        for method in methods
    ]
    missing = [[*_what(result), result.problem] for result in results if not result.score]
    found = [
        Table("Scores", ["tasks", "metric", "chance", *methods], scores),
        Table("Training and test", ["tasks", "method", "steps", "parameters", "training", "test", "seed"], details),
        Table("Versions", ["method", "versions", "machine"], [row for row in how if any(row[1:])]),
        Table("Tasks", ["tasks", "number", "queries", "sha256 of the tasks", "sha256 of the examples"], tasks),
        Table("Not run", ["tasks", "method", "reason"], missing),
    ]
    return [table for table in found if table.rows]


def markdown(results: Sequence[Result]) -> str:
    """The tables in Markdown."""
    parts = []
    for table in tables(results):
        lines = [
            table.header,
            ["---"] * len(table.header),
            *([cell.replace("|", r"\|") for cell in row] for row in table.rows),
        ]
        parts += [f"**{table.title}**", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts)


STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0 0 2em; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3em .8em; text-align: left; vertical-align: top }
"""


def page(results: Sequence[Result], remark: str) -> str:
    """The page as one HTML file, without scripts.

    Args:
        results: Results in the order of the page.
        remark: A line below the title.
    """
    parts = ["<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8"><title>Benchmark of domains</title>']
    parts += [f"<style>{STYLE}</style></head><body>", f"<h1>Benchmark of domains</h1><p>{html.escape(remark)}</p>"]
    for table in tables(results):
        parts += [f"<h2>{html.escape(table.title)}</h2>", "<table>", _row("th", table.header)]
        parts += [*(_row("td", row) for row in table.rows), "</table>"]
    return "\n".join([*parts, "</body></html>", ""])


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _what(result: Result) -> list[str]:
    return [f"{setting_of(result)[0].title}, {result.setting}", result.method]


def _score(result: Result) -> str:
    if not result.score:
        return "not finite" if result.episodes else "not run"
    unit = setting_of(result)[0].unit
    digits = 1 if unit == "%" else 3
    around = f" ± {float(result.half_width):.{digits}f}" if result.half_width else ""
    return f"{float(result.score):.{digits}f}{around}{f' {unit}' if unit else ''}"


def _steps(result: Result) -> str:
    steps, planned = int(result.steps), int(result.planned)
    rounded = math.ceil(planned / STEPS_OF_AN_EPOCH)  # rounding, as validations are evenly spaced
    return f"{steps:,} (shortened, of {planned:,})" if planned - steps >= max(rounded, 1) else f"{steps:,}"


def _time(seconds: str) -> str:
    return duration(float(seconds) / 3600)


def _versions(result: Result) -> str:
    revision = f" at {result.revision[:7]}" if result.revision else ""
    return f"lightning_meta {result.lightning_meta}{revision}, torch {result.torch}, Python {result.python}"


def _all(results: Iterable[Result], of: Callable[[Result], str]) -> str:
    """The distinct values of the lines."""
    return "; ".join(dict.fromkeys(said for result in results if (said := of(result))))
