"""What finished runs measured, one record for each figure and seed, and the CSV file that keeps them."""

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
class Record:
    """A figure of one seed.

    Attributes:
        row: The name of its row.
        version: The row's version that was run.
        figure: The name of the figure.
        seed: The seed.
        value: What was measured, in the figure's unit; "" where it is not finite.
        over_tasks: Half-width of its 95 % interval over drawn test tasks; "" where tasks have names.
        tasks: How many test tasks.
        hours: That the run took in all, its further tests not included.
        machine: In words.
        python: Its version, as the next two.
        torch: See above.
        lightning_meta: See above.
        revision: The commit that was checked out.
        data: The hash of the examples; "" where tasks are made.
    """

    row: str
    version: str
    figure: str
    seed: str
    value: str
    over_tasks: str
    tasks: str
    hours: str
    machine: str
    python: str
    torch: str
    lightning_meta: str
    revision: str
    data: str


Line = TypeVar("Line", bound="DataclassInstance")


def collect(runs: Path, rows: Iterable[Row]) -> list[Record]:
    """The records of all runs in a folder that were made of the rows as they are now.

    Args:
        runs: The folder.
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
    """Records of both, the new ones in the place of old ones of the same figure and seed.

    Args:
        old: Those of other versions of a row are dropped, as of rows and figures that are no more.
        new: What takes their place.
        rows: In the order that the records get.
    """
    known = {(row.name, row.version, figure.name): None for row in rows for figure in row.figures}
    order = {key: place for place, key in enumerate(known)}
    by_key = {(r.row, r.version, r.figure, int(r.seed)): r for r in (*old, *new)}
    kept = {key: record for key, record in by_key.items() if key[:3] in order}
    return [kept[key] for key in sorted(kept, key=lambda key: (order[key[:3]], key[3]))]


def read_records(file: Path) -> list[Record]:
    """Those of a file; none where it is not there.

    Raises:
        UserError: It has other columns.
    """
    return read_lines(file, Record)


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Write them, a line each."""
    write_lines(file, Record, records)


def read_lines(file: Path, kind: type[Line]) -> list[Line]:
    """The lines of a CSV file as instances of a dataclass of texts; none where the file is not there.

    Raises:
        UserError: It has other columns.
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
    """Write instances of a dataclass of texts, a line each."""
    with replacing(file) as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: as_cell(value) for name, value in asdict(line).items()} for line in lines)
