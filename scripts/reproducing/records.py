"""Results of finished runs, one record per figure and seed, and their CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lightning_meta.cells import as_cell, as_text
from lightning_meta.errors import UserError
from lightning_meta.run.files import replacing
from reproducing.rows import Figure, Row
from reproducing.storing import Stored

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Measured:
    """A finished measurement.

    Attributes:
        row: Name of the row.
        version: Version of the row.
        hours: Duration in hours: of a training without further tests, or of all commands.
        machine: Description of the machine.
        python: Version of Python.
        torch: Version of torch.
        lightning_meta: Version of this package.
        revision: Commit of the working tree.
        data: Hash of the examples or of the needed files; "" for generated tasks.
    """

    row: str
    version: str
    hours: str
    machine: str
    python: str
    torch: str
    lightning_meta: str
    revision: str
    data: str


@dataclass(frozen=True)
class Record(Measured):
    """A figure of one seed.

    Attributes:
        figure: Name of the figure.
        seed: The seed.
        value: Measured value in the unit of the figure; "" if it is not finite.
        over_tasks: Half-width of the 95 % interval over random test tasks; "" for named tasks.
        tasks: Number of test tasks.
    """

    figure: str
    seed: str
    value: str
    over_tasks: str
    tasks: str


Line = TypeVar("Line", bound="DataclassInstance")


def collect(runs: Path, rows: Iterable[Row]) -> list[Record]:
    """Collect the records of all runs in a folder that belong to the current versions of the rows.

    Args:
        runs: Folder of the runs.
        rows: The rows.
    """
    records = []
    for row in rows:
        folder = Stored(runs, row, 1).folder.parent
        seeds = sorted(int(f.name.removeprefix("seed_")) for f in folder.glob("seed_*") if f.name[5:].isdecimal())
        for stored in (Stored(runs, row, seed) for seed in seeds):
            records += [record for figure in row.figures if (record := _record(stored, figure)) is not None]
    return records


def _record(stored: Stored, figure: Figure) -> Record | None:
    found = stored.results(figure)
    if found is None or figure.metric not in found:
        return None
    versions = found["versions"]
    return Record(
        row=stored.row.name,
        version=stored.row.version,
        figure=figure.name,
        seed=str(stored.seed),
        value=_number(found[figure.metric], figure.scale),
        over_tasks=_number(found.get(f"{figure.metric}_ci95"), figure.scale),
        tasks=f"{found['test/tasks']:.0f}",
        hours=f"{stored.seconds / 3600:.4f}",
        machine="; ".join(stored.machines),
        python=str(versions["python"]),
        torch=str(versions["torch"]),
        lightning_meta=str(versions["lightning_meta"]),
        revision=str(found.get("git_revision") or ""),
        data=str(found.get("data_fingerprint") or ""),
    )


def _number(value: float | None, scale: float) -> str:
    return "" if value is None else f"{value * scale:.6g}"


def merged(old: Iterable[Record], new: Iterable[Record], rows: Iterable[Row]) -> list[Record]:
    """Merge records; new ones replace old ones of the same figure and seed.

    Args:
        old: Old records; those of other versions, and of removed rows and figures, are dropped.
        new: New records.
        rows: Rows in the order of the result.
    """
    current = {(row.name, row.version, figure.name): None for row in rows for figure in row.figures}
    order = {key: place for place, key in enumerate(current)}
    by_key = {(r.row, r.version, r.figure, int(r.seed)): r for r in (*old, *new)}
    kept = {key: record for key, record in by_key.items() if key[:3] in order}
    return [kept[key] for key in sorted(kept, key=lambda key: (order[key[:3]], key[3]))]


def read_records(file: Path) -> list[Record]:
    """Read the records of a file; empty if it does not exist.

    Raises:
        UserError: The file has other columns.
    """
    return read_lines(file, Record)


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Write records, one per line."""
    write_lines(file, Record, records)


def read_lines(file: Path, kind: type[Line]) -> list[Line]:
    """Read the lines of a CSV file as instances of a dataclass of strings; empty if it does not exist.

    Raises:
        UserError: The file has other columns.
    """
    if not file.is_file():
        return []
    columns = [field.name for field in fields(kind)]
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if reader.fieldnames != columns:
            raise UserError(f"{file}: expected the columns {', '.join(columns)}; remove the file, or restore it")
        return [kind(**{name: as_text(cell) for name, cell in line.items()}) for line in reader]


def write_lines(file: Path, kind: type[Line], lines: Iterable[Line]) -> None:
    """Write instances of a dataclass of strings, one per line."""
    with replacing(file) as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: as_cell(value) for name, value in asdict(line).items()} for line in lines)
