"""`lightning-meta test --calibrate`: a file in the run directory, for each way and shot, that `predict` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_meta.configuration import public_path
from lightning_meta.data.hashes import of_weights
from lightning_meta.errors import UserError
from lightning_meta.fitting.calibration import Calibrated
from lightning_meta.meta import MetaModule
from lightning_meta.meta.calibration import Calibration
from lightning_meta.meta.export import OPTIONS
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.reading import check_regular, read_text, refuse_link
from lightning_meta.run.files import replacing

MEASURES = {
    "coverage": "label in the set",
    "set_size": "labels in a set",
    "accuracy": "accuracy",
    "abstained": "abstained",
    "accuracy_of_rest": "accuracy of the rest",
    "abstained_strangers": "abstained, images of other classes",
    "open_set_auroc": "open-set AUROC",
}
SPLITS = {"val": "calibration tasks", "test": "test tasks, other classes"}


def file_of(run: Path, ways: int, shots: int) -> Path:
    """Where the calibration of a run for tasks of these ways and shots is stored."""
    return run / f"calibration_{ways}way_{shots}shot.json"


def write_calibration(run: Path, module: MetaModule, found: Calibrated) -> Path:
    """Store a calibration in its run directory, in the place of an earlier one.

    Args:
        run: The run directory.
        module: What was calibrated.
        found: What came out.

    Returns:
        The file.
    """
    calibration, measured = found
    path = file_of(run, calibration.ways, calibration.shots)
    refuse_link(path)
    about = {"split": "val", **calibration._asdict(), **identity(module), "measured": measured}
    with replacing(path) as file:
        json.dump(about, file, indent=2)
        file.write("\n")
    return path


def read_calibration(
    run: Path, ckpt_path: str, module: MetaModule, ways: int, shots: int, options: Mapping[str, Any]
) -> Calibration:
    """The calibration of a run for tasks of these ways and shots.

    Args:
        run: The run directory.
        ckpt_path: What the user calls it.
        module: As loaded, with the options of the command.
        ways: N.
        shots: K.
        options: Those of the command that the module was loaded with, by name; None where they were left out.

    Raises:
        UserError: There is none, it is of other weights or options, or it is damaged.
    """
    path = file_of(run, ways, shots)
    shown = f"lightning-meta test --ckpt_path {ckpt_path} --calibrate 0.9 --ways {ways} --shots {shots}"
    command = f"`{' '.join([shown, *(f'--{name} {value}' for name, value in options.items() if value is not None)])}`"
    if not path.is_file():
        known = sorted(file.stem.removeprefix("calibration_") for file in run.glob("calibration_*way_*shot.json"))
        others = f" (only for {', '.join(known)})" if known else ""
        raise UserError(
            f"--calibrated: {run} is not calibrated for the {ways} classes with {shots} images each of --support"
            f"{others}; run {command}"
        )
    try:
        check_regular(path)
        stored = json.loads(read_text(path))
        values: dict[str, Any] = {name: float(stored[name]) for name in Calibration._fields}
        shares = values["coverage"], values["quantile"], values["threshold"]
        if not (0 < values["temperature"] < math.inf and all(0 <= share <= 1 for share in shares)):
            raise ValueError("its values are out of range")
        sizes = int(values.pop("ways")), int(values.pop("shots")), int(values.pop("tasks"))
        calibration = Calibration(*sizes, **values)
        if sizes[:2] != (ways, shots):
            raise ValueError(f"it is for {sizes[0]} ways and {sizes[1]} shots")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a calibration, or it is damaged ({error}); run {command}") from error
    for name, now in identity(module).items():
        if stored.get(name) != now:
            then = "other weights" if name == "weights" else f"{name} {stored.get(name)}, and not {now}"
            raise UserError(f"--calibrated: {path} was made with {then}; calibrate again by {command}")
    return calibration


def print_calibration(found: Calibrated, path: Path) -> None:
    """Print what was measured, by split, and where the calibration is."""
    calibration, measured = found
    shown = [SPLITS[split] for split in measured]
    table = Table(f"{calibration.ways}-way {calibration.shots}-shot", *shown)
    for name, words in MEASURES.items():
        table.add_row(words, *(_shown(name, of_split) for of_split in measured.values()))
    aim = f"{100 * calibration.coverage:g} %"
    table.caption = (
        f"{calibration.tasks} tasks each; ± is the half-width of the 95 % interval over tasks. "
        "New tasks of the classes of calibration have the label in the set for "
        f"{aim} of images or more, on average; for other classes this is no promise."
    )
    Console(markup=False, emoji=False).print(table)
    said = (
        f"temperature {calibration.temperature:.4g}, sets hold labels with probability {1 - calibration.quantile:.4g}"
    )
    print(f"{said} and more, abstains below {calibration.threshold:.4g}")
    print(f"written to {path}")


def identity(module: MetaModule | MultiTaskModule) -> dict[str, Any]:
    """What a calibration holds for: the weights, and options that change predictions."""
    weights = of_weights((name, tensor) for name, tensor in module.state_dict().items() if hasattr(tensor, "dtype"))
    options = {name: getattr(module, name) for name in OPTIONS if hasattr(module, name)}
    return {"model": public_path(type(module)), **options, "weights": weights}


def _shown(name: str, measured: Mapping[str, float | None]) -> str:
    value, interval = measured[name], measured.get(f"{name}_ci95")
    if value is None:
        return "-"
    if interval is not None:
        return f"{100 * value:.1f} ± {100 * interval:.1f} %"
    return f"{value:.3g}" if name in ("set_size", "open_set_auroc") else f"{100 * value:.1f} %"
