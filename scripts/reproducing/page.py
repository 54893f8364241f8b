"""The table of figures as Markdown and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lightning_meta.cells import as_cells
from lightning_meta.errors import UserError
from lightning_meta.run.files import replacing
from reproducing.outcomes import NOT_RUN, Outcome
from reproducing.planning import duration
from reproducing.records import Measured, Record

COLUMNS: dict[str, Callable[[Outcome], object]] = {
    "row": lambda o: o.row.name,
    "figure": lambda o: o.figure.name,
    "unit": lambda o: o.figure.unit,
    "measured": lambda o: _csv(o.mean),
    "half_width": lambda o: _csv(o.half_width),
    "interval_over": lambda o: o.interval,
    "seeds": lambda o: " ".join(record.seed for record in o.records),
    "published": lambda o: "" if o.figure.published is None else o.figure.published,
    "published_half_width": lambda o: "" if o.figure.half_width is None else o.figure.half_width,
    "source": lambda o: o.figure.source,
    "verdict": lambda o: o.verdict,
    "protocol": lambda o: o.figure.protocol,
    "deviations": lambda o: _deviations(o),
    "tasks": lambda o: _all(o, lambda record: record.tasks),
    "hours_of_a_seed": lambda o: _csv(_hours(o)),
    "machine": lambda o: _all(o, lambda record: record.machine),
    "versions": lambda o: _all(o, versions_of),
    "data": lambda o: _all(o, lambda record: record.data),
    "row_version": lambda o: o.row.version,
}


def write_csv(file: Path, figures: Iterable[Outcome]) -> None:
    """Write a line for each figure.

    Args:
        file: Output file.
        figures: The figures.
    """
    with replacing(file) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(as_cells(column(outcome) for column in COLUMNS.values()) for outcome in figures)


def markdown(command: str, figures: Sequence[Outcome]) -> str:
    """The measured figures with their conditions, and the figures that were not run.

    Args:
        command: Command that makes the page.
        figures: The figures.
    """
    ran = [outcome for outcome in figures if outcome.records]
    parts = [f"Made by `{command}` from {len(ran)} measured figures; {len(figures) - len(ran)} were not run."]
    if ran:
        rows = [[_name(o), _measured(o), _published(o), o.verdict, _protocol(o)] for o in ran]
        parts.append(table(["row", "measured", "published", "verdict", "protocol"], rows))
        by_row = {outcome.row.name: outcome for outcome in ran}
        details = [
            [f"`{name}`", duration(_hours(o)), *(_all(o, of) for of in (_machine, versions_of, _data))]
            for name, o in by_row.items()
        ]
        parts.append(table(["row", "time of a seed", "machine", "versions", "sha256 of the data"], details))
    if missing := [o for o in figures if o.verdict == NOT_RUN]:
        rows = [[_name(o), _published(o) or "", o.figure.source, o.figure.protocol] for o in missing]
        parts += ["Not run:", table(["row", "published", "source", "protocol"], rows)]
    return "\n\n".join(parts)


def with_parts(page: Path, parts: dict[str, str]) -> str:
    """The text of a page with new content between `<!-- name -->` and `<!-- /name -->`.

    Args:
        page: The page.
        parts: New content by name.

    Raises:
        UserError: The page lacks the comments.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise UserError(f"{page}: expected one {begin} and one {end}; restore the page")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"
    return text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(outcome: Outcome) -> str:
    return f"`{outcome.row.name}`, {outcome.figure.name}"


def _measured(outcome: Outcome) -> str:
    seeds = f"{len(outcome.records)} seed{'' if len(outcome.records) == 1 else 's'}"
    if math.isnan(outcome.mean):
        return f"not finite ({seeds})"
    digits = 2 if outcome.figure.unit else 3
    around = f" ± {outcome.half_width:.{digits}f}" if math.isfinite(outcome.half_width) else ""
    unit = f" {outcome.figure.unit}" if outcome.figure.unit else ""
    over = f"; interval over {outcome.interval}" if around and outcome.interval != "seeds" else ""
    return f"{outcome.mean:.{digits}f}{around}{unit} ({seeds}{over})"


def _published(outcome: Outcome) -> str:
    figure = outcome.figure
    if figure.published is None:
        return ""
    around = "" if figure.half_width is None else f" ± {figure.half_width}"
    return f"{figure.published}{around}{f' {figure.unit}' if figure.unit else ''}"


def _protocol(outcome: Outcome) -> str:
    figure = outcome.figure
    source = f"; published in {figure.source}" if figure.source else ""
    deviations = _deviations(outcome)
    return f"{figure.protocol}{source}{f'. Deviations: {deviations}' if deviations else ''}"


def _deviations(outcome: Outcome) -> str:
    """What differs from the publication: the precision if an option sets it, and what the row says."""
    name = "--trainer.precision="
    precision = "".join(f"{o.removeprefix(name)} precision" for o in outcome.row.options if o.startswith(name))
    return "; ".join(filter(None, (precision, outcome.row.deviations, outcome.row.shortened)))


def _hours(outcome: Outcome) -> float:
    hours = [float(record.hours) for record in outcome.records]
    return math.fsum(hours) / len(hours) if hours else math.nan


def _machine(record: Record) -> str:
    return record.machine


def versions_of(record: Measured) -> str:
    """The versions and the commit of a result."""
    revision = f" at {record.revision[:7]}" if record.revision else ""
    return f"lightning_meta {record.lightning_meta}{revision}, torch {record.torch}, Python {record.python}"


def _data(record: Record) -> str:
    return record.data[:12] or "tasks are made"


def _all(outcome: Outcome, of: Callable[[Record], str]) -> str:
    """The distinct values over seeds."""
    return "; ".join(dict.fromkeys(of(record) for record in outcome.records))


def _csv(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
