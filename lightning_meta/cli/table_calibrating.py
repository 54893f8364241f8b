"""`lightning-meta test --calibrate` for table models: stores a file in the run directory that `predict` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lightning_meta.cli.calibrating import identity
from lightning_meta.errors import UserError
from lightning_meta.fitting.table_calibration import CalibratedTable
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.multitask.calibration import LabelCalibration, Measured, NumberCalibration, TableCalibration
from lightning_meta.reading import check_regular, read_text, refuse_link
from lightning_meta.run.files import replacing
from lightning_meta.tasks import Regression

FILE = "calibration_table.json"
SHOWN = 20  # tasks that are printed; all are in the file
MEASURES = {
    "coverage": "covered",
    "size": "size",
    "accuracy": "accuracy",
    "abstained": "abstained",
    "accuracy_of_rest": "accuracy of the rest",
}
SHARES = ("coverage", "accuracy", "abstained", "accuracy_of_rest")


def write_table_calibration(run: Path, about: Mapping[str, Any], found: CalibratedTable) -> Path:
    """Write a calibration into its run directory; replaces an earlier one.

    Args:
        run: The run directory.
        about: Result of `identity` for the model.
        found: The calibration and its measured coverage.

    Returns:
        Path of the file.
    """
    path = run / FILE
    refuse_link(path)
    tasks = {name: of._asdict() for name, of in found.calibration.tasks.items()}
    stored = {"split": "val", "coverage": found.calibration.coverage, "tasks": tasks, **about}
    with replacing(path) as file:
        json.dump({**stored, "measured": {"test": found.measured}}, file, indent=2)
        file.write("\n")
    return path


def read_table_calibration(run: Path, ckpt_path: str, module: MultiTaskModule) -> TableCalibration:
    """Read the calibration of a run that was trained on a table.

    Args:
        run: The run directory.
        ckpt_path: The path as the user gave it, for messages.
        module: The loaded model.

    Raises:
        UserError: There is no calibration, it belongs to other weights, or the file is damaged.
    """
    path, command = run / FILE, f"`lightning-meta test --ckpt_path {ckpt_path} --calibrate 0.9`"
    if not path.is_file():
        raise UserError(f"--calibrated: {run} is not calibrated; run {command}")
    try:
        check_regular(path)
        stored = json.loads(read_text(path))
        coverage = float(stored["coverage"])
        tasks = {name: _of_task(stored["tasks"][name], task) for name, task in module.spec.tasks.items()}
        if not 0 < coverage < 1:
            raise ValueError("its values are out of range")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a calibration, or it is damaged ({error}); run {command}") from error
    for name, now in identity(module).items():
        if stored.get(name) != now:
            then = "other weights" if name == "weights" else f"{name} {stored.get(name)}, and not {now}"
            raise UserError(f"--calibrated: {path} was made with {then}; calibrate again by {command}")
    return TableCalibration(coverage, tasks)


def print_table_calibration(found: CalibratedTable, path: Path) -> None:
    """Print the results on the test split by task, and the path of the file."""
    (coverage, tasks), measured = found
    shown = {name: {**of, "size": of.get("set_size", of.get("width"))} for name, of in measured.items()}
    measures = [name for name in MEASURES if any(name in of for of in shown.values())]
    table = Table("task", "labels val, test", box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for name in measures:
        table.add_column(MEASURES[name], no_wrap=name == "coverage")
    for name in list(tasks)[:SHOWN]:
        cells = (_shown(measure, shown[name]) for measure in measures)
        table.add_row(name, f"{tasks[name].labels}, {measured[name]['labels']:.0f}", *cells)
    more = f"; {len(tasks) - SHOWN} more tasks are in the file" if len(tasks) > SHOWN else ""
    table.caption = (
        "Calibrated on the labels of the validation split; the other columns are measured on the labels of the test "
        f"split, with a 95 % interval over independent rows in brackets{more}. The size is the number of labels in a "
        "set, or the width of an interval. The rest are the rows without abstention. Sets and intervals of new rows "
        f"contain the label for {100 * coverage:g} % of rows or more, on average, if new rows are like validation rows."
    )
    Console(markup=False, emoji=False).print(table)
    print(f"written to {path}")


def _of_task(stored: Any, task: Any) -> LabelCalibration | NumberCalibration:
    kind = NumberCalibration if isinstance(task, Regression) else LabelCalibration
    values = {name: float(stored[name]) for name in kind._fields}
    labels = int(values.pop("labels"))
    shares = [value for name, value in values.items() if name in ("quantile", "threshold")]
    sound = labels > 0 and all(0 <= value < math.inf for value in values.values()) and max(shares, default=0) <= 1
    if not sound or values.get("temperature", 1.0) == 0:
        raise ValueError("its values are out of range")
    return kind(labels, **values)


def _shown(name: str, measured: Measured) -> str:
    value = measured.get(name)
    if value is None:
        return "-"
    if name == "coverage":
        low, high = measured["coverage_low"], measured["coverage_high"]
        assert low is not None
        assert high is not None
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] %"
    return f"{100 * value:.1f} %" if name in SHARES else f"{value:.3g}"
