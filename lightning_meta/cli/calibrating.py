"""`lightning-meta test --calibrate`: files in the run directory that `predict` reads.

There is one for each way and shot of a few-shot classifier, or one for all targets of a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_meta.data.hashes import of_weights
from lightning_meta.errors import UserError
from lightning_meta.fitting.calibration import Calibrated
from lightning_meta.fitting.table_calibration import CalibratedTable
from lightning_meta.import_paths import public_path
from lightning_meta.loading import find_checkpoint
from lightning_meta.meta import MetaModule
from lightning_meta.meta.calibration import Calibration
from lightning_meta.meta.export import OPTIONS
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.multitask.calibration import LabelCalibration, NumberCalibration, TableCalibration
from lightning_meta.reading import check_regular, read_text, refuse_link
from lightning_meta.run.directory import run_directory_of
from lightning_meta.run.files import replacing
from lightning_meta.tasks import Regression
from lightning_meta.tasks.table import TableSpec

OF_TABLE = "calibration_table.json"
SHOWN = 20  # targets that are printed; all are in the file
MEASURES = {
    "coverage": "label in the set",
    "set_size": "labels in a set",
    "accuracy": "accuracy",
    "abstained": "abstained",
    "accuracy_of_rest": "accuracy of the rest",
    "abstained_other_classes": "abstained, images of other classes",
    "open_set_auroc": "open-set AUROC",
}
OF_NUMBERS = {"coverage": "in the interval", "width": "interval width"}
OF_CLASSES = {
    "coverage": "in the set",
    "set_size": "labels\nin a set",
    "accuracy": "accuracy",
    "abstained": "abstains",
    "accuracy_of_rest": "accuracy\nof rest",
}
SPLITS = {"val": "calibration tasks", "test": "test tasks, other classes"}

T = TypeVar("T")


def file_of(run: Path, ways: int, shots: int) -> Path:
    """Path of a run's calibration for tasks of these ways and shots."""
    return run / f"calibration_{ways}way_{shots}shot.json"


def write_calibration(run: Path, about: Mapping[str, Any], found: Calibrated | CalibratedTable) -> Path:
    """Write a calibration of a model with this `identity` into its run directory; returns the path."""
    path, measured, content = run / OF_TABLE, dict[str, Any](found.measured), found.calibration._asdict()
    if isinstance(found, Calibrated):
        path = file_of(run, found.calibration.ways, found.calibration.shots)
    else:
        content["tasks"] = {name: task and task._asdict() for name, task in found.calibration.tasks.items()}
        measured = {"test": measured}
    refuse_link(path)
    with replacing(path) as file:
        json.dump({"split": "val", **content, **about, "measured": measured}, file, indent=2)
        file.write("\n")
    return path


def read_calibration(
    ckpt_path: str, module: MetaModule, ways: int, shots: int, options: Mapping[str, Any]
) -> Calibration:
    """The calibration of a run for tasks of these ways and shots.

    Args:
        ckpt_path: Run directory or checkpoint, as the user gave it.
        module: The model, loaded with the options.
        ways: Number of classes.
        shots: Number of examples of each.
        options: Options of the command that change the model, by name; None for those not given.

    Raises:
        UserError: There is no calibration, it belongs to other weights or options, or the file is damaged.
    """
    run = _run_of(ckpt_path)
    path, command = file_of(run, ways, shots), _command(ckpt_path, {"ways": ways, "shots": shots, **options})
    if not path.is_file():
        known = sorted(file.stem.removeprefix("calibration_") for file in run.glob("calibration_*way_*shot.json"))
        others = f" (only for {', '.join(known)})" if known else ""
        raise UserError(
            f"--calibrated: {run} is not calibrated for the {ways} classes with {shots} images each of --support"
            f"{others}; run {command}, which needs {ways} classes in the validation split of its data and {ways} "
            "others in the test split; to calibrate on further images of your own classes, use "
            "lightning_meta.estimators.FewShotClassifier.calibrate in Python"
        )

    def parse(stored: Any) -> Calibration:
        values: dict[str, Any] = {name: float(stored[name]) for name in Calibration._fields}
        shares = values["coverage"], values["quantile"], values["threshold"]
        if not (0 < values["temperature"] < math.inf and all(0 <= share <= 1 for share in shares)):
            raise ValueError("its values are out of range")
        sizes = int(values.pop("ways")), int(values.pop("shots")), int(values.pop("tasks"))
        if sizes[:2] != (ways, shots):
            raise ValueError(f"it is for {sizes[0]} ways and {sizes[1]} shots")
        return Calibration(*sizes, **values)

    return _read(path, command, module, parse)


def read_table_calibration(ckpt_path: str, module: MultiTaskModule) -> TableCalibration:
    """Read the calibration of a run that was trained on a table.

    Raises:
        UserError: There is no calibration, it belongs to other weights, or the file is damaged.
    """
    run = _run_of(ckpt_path)
    path, command = run / OF_TABLE, _command(ckpt_path, {})
    if not path.is_file():
        raise UserError(f"--calibrated: {run} is not calibrated; run {command}")

    def parse(stored: Any) -> TableCalibration:
        coverage = float(stored["coverage"])
        tasks = {name: _of_task(stored["tasks"][name], task) for name, task in module.spec.tasks.items()}
        if not 0 < coverage < 1 or not any(tasks.values()):
            raise ValueError("its values are out of range")
        return TableCalibration(coverage, tasks)

    return _read(path, command, module, parse)


def print_calibration(found: Calibrated, path: Path) -> None:
    """Print the results by split and the path of the file."""
    calibration, measured = found
    table = Table(f"{calibration.ways}-way {calibration.shots}-shot", *(SPLITS[split] for split in measured))
    for name, words in MEASURES.items():
        table.add_row(words, *(_shown(name, of_split) for of_split in measured.values()))
    table.caption = (
        f"{calibration.tasks} tasks each; ± is the half-width of the 95 % interval over tasks. New tasks of the "
        f"classes of calibration have the label in the set for {100 * calibration.coverage:g} % of images or more, on "
        "average; this is not guaranteed for other classes."
    )
    Console(markup=False, emoji=False).print(table)
    print(
        f"temperature {calibration.temperature:.4g}; a set contains the labels with a probability of at least "
        f"{1 - calibration.quantile:.4g}; abstains below {calibration.threshold:.4g}\nwritten to {path}"
    )


def print_table_calibration(found: CalibratedTable, path: Path, spec: TableSpec) -> None:
    """Print the results on the test split, in a table for numbers and one for classes, and the path of the file."""
    tasks = {name: task for name, task in found.calibration.tasks.items() if task is not None}
    units = {target.name: target.unit for target in spec.targets}
    if spec.task_column:
        units = dict.fromkeys(tasks, spec.targets[0].unit)
    console = Console(markup=False, emoji=False)
    for kind, measures in ((NumberCalibration, OF_NUMBERS), (LabelCalibration, OF_CLASSES)):
        names = [name for name, task in tasks.items() if isinstance(task, kind)]
        if not names:
            continue
        table = Table("task", box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False)
        for words in ("labels\nval, test", *measures.values()):
            table.add_column(words, no_wrap=True)
        for name in names[:SHOWN]:
            measured = found.measured[name]
            cells = (_shown(measure, measured, units.get(name, "")) for measure in measures)
            table.add_row(Text(name), f"{tasks[name].labels}, {measured['labels']:.0f}", *cells)
        console.print("", table)
        if len(names) > SHOWN:
            print(f"{len(names) - SHOWN} more tasks are in the file")
    console.print(
        "\nCalibrated on the labels of the validation split; the other columns are measured on the labels of the test "
        "split, with a 95 % interval over independent rows in brackets; the rest are the rows without abstention. The "
        f"intervals and sets of new rows contain the label for {100 * found.calibration.coverage:g} % of rows or more, "
        "on average, if new rows are like validation rows."
    )
    print(f"written to {path}")


def identity(module: MetaModule | MultiTaskModule) -> dict[str, Any]:
    """The weights and the options that change predictions; a calibration is only valid for these."""
    weights = of_weights((name, tensor) for name, tensor in module.state_dict().items() if hasattr(tensor, "dtype"))
    options = {name: getattr(module, name) for name in OPTIONS if hasattr(module, name)}
    return {"model": public_path(type(module)), **options, "weights": weights}


def _run_of(ckpt_path: str) -> Path:
    run = run_directory_of(find_checkpoint(ckpt_path))
    if run is None:
        raise UserError(f"--calibrated: {ckpt_path} is not in a run directory, where a calibration is stored")
    return run


def _command(ckpt_path: str, options: Mapping[str, Any]) -> str:
    given = "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    return f"`lightning-meta test --ckpt_path {ckpt_path} --calibrate 0.9{given}`"


def _read(path: Path, command: str, module: MetaModule | MultiTaskModule, parse: Callable[[Any], T]) -> T:
    """Read a calibration, and check that it is of this model; `command` is the one that writes it, for messages."""
    try:
        check_regular(path)
        stored = json.loads(read_text(path))
        calibration = parse(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a calibration, or it is damaged ({error}); run {command}") from error
    for name, now in identity(module).items():
        if stored.get(name) != now:
            then = "other weights" if name == "weights" else f"{name} {stored.get(name)}, and not {now}"
            raise UserError(f"--calibrated: {path} was made with {then}; calibrate again by {command}")
    return calibration


def _of_task(stored: Any, task: Any) -> LabelCalibration | NumberCalibration | None:
    if stored is None:  # it had too few labels
        return None
    kind = NumberCalibration if isinstance(task, Regression) else LabelCalibration
    values = {name: float(stored[name]) for name in kind._fields}
    labels = int(values.pop("labels"))
    shares = [value for name, value in values.items() if name in ("quantile", "threshold")]
    sound = labels > 0 and all(0 <= value < math.inf for value in values.values()) and max(shares, default=0) <= 1
    if not sound or values.get("temperature", 1.0) == 0:
        raise ValueError("its values are out of range")
    return kind(labels, **values)


def _shown(name: str, measured: Mapping[str, float | None], unit: str = "") -> str:
    """A measured value: a size, an area, a width in its unit, or a share in percent with its interval."""
    value = measured.get(name)
    if value is None:
        return "-"
    if name in ("set_size", "open_set_auroc"):
        return f"{value:.3g}"
    if name == "width":
        return f"{value:,.0f} {unit}".rstrip() if value >= 1000 else f"{value:.3g} {unit}".rstrip()
    low, high, half = (measured.get(f"{name}_{end}") for end in ("low", "high", "ci95"))
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f}{interval if half is None else f' ± {100 * half:.1f}'} %"
