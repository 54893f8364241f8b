"""Write the transfer report as CSV and JSON."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lightning_meta.cells import as_cells
from lightning_meta.report.transfer.enemies import RULES
from lightning_meta.report.transfer.intervals import METHOD
from lightning_meta.report.transfer.results import MethodTransfer, TaskTransfer, TransferReport
from lightning_meta.report.transfer.statements import RULES as STATEMENTS
from lightning_meta.report.transfer.statements import ForTheMethod, ForTheseModels
from lightning_meta.run.files import replacing

TASK_COLUMNS = tuple(f.name for f in fields(TaskTransfer))
NESTED = {"for_models": ForTheseModels, "for_method": ForTheMethod}
METHOD_COLUMNS = (
    *(f.name for f in fields(MethodTransfer) if f.name not in ("tasks", *NESTED)),
    *(f"{statement}_{f.name}" for statement, kind in NESTED.items() for f in fields(kind)),
)


def write_csv(report: TransferReport, file: Path) -> None:
    """Write a CSV file with one row for each method and task; unknown values are empty.

    Args:
        report: The comparison.
        file: File to write.
    """
    with replacing(file) as stream:
        writer = csv.writer(stream)
        writer.writerow(["method", *TASK_COLUMNS])
        for method in report.methods:
            for task in method.tasks:
                row = asdict(task)
                values = ["" if _unknown(row[c]) else row[c] for c in TASK_COLUMNS]
                writer.writerow(as_cells([method.method, *values]))


def method_row(method: MethodTransfer) -> dict[str, Any]:
    """The results of a method over all tasks, by the names in `METHOD_COLUMNS`."""
    row = asdict(method)
    row |= {f"{name}_{key}": value for name in NESTED for key, value in row[name].items()}
    return {name: row[name] for name in METHOD_COLUMNS} | {"dominating": ", ".join(method.dominating)}


def write_json(report: TransferReport, file: Path) -> None:
    """Write the whole report and the rules of its statistics as JSON; unknown values are null.

    Args:
        report: The comparison.
        file: File to write.
    """
    content = {
        "sign": "higher is better",
        "intervals": METHOD,
        "enemies": RULES,
        "statements": STATEMENTS,
        **asdict(report),
    }
    with replacing(file) as stream:
        json.dump(_plain(content), stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def _plain(value: Any) -> Any:
    """Convert tuples to lists and numbers that are not finite to None, which JSON can represent."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if _unknown(value) else value


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
