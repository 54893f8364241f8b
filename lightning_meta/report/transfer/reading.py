"""Read multi-task run directories and their arrays, and refuse damaged, contradictory or malicious files."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.lib import format as npy

from lightning_meta.errors import UserError, reason_of
from lightning_meta.metrics import classes_of
from lightning_meta.reading import is_number, open_regular, read_text, read_yaml
from lightning_meta.run.tables import numbers_of, read_columns, read_table

# Columns of `per_task.csv`, by their type.
TEXT, COUNTS = ("task", "metric", "better"), ("train_examples", "test_examples")
NUMBERS = ("train", "val", "test", "train_loss", "joint", "gradient_share", "constant", "best_step")
MEANS = ("accuracy", "log_loss", "r2", "mae", "rmse")  # metrics that are a mean over examples, or the root of one
# Type and number of dimensions of the arrays in `predictions.npz`.
ARRAYS = {
    "names": ("U", 1),
    "task": ("i", 1),
    "id": ("i", 1),
    "score": ("f", 1),
    "output": ("f", 2),
    "target": ("f", 2),
}
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
RATIO, SLACK = 100, 2**28  # the arrays may take at most 100 times the size of the file plus 256 MiB


@dataclass(frozen=True)
class TaskResult:
    """The results of one task in one run, at its selected checkpoint; unknown numbers are NaN."""

    metric: str  # name of the metric by which the task is selected and compared
    better: str  # whether a "higher" or a "lower" value of the metric is better
    train_examples: int
    train: float  # metric on a fixed subset of the training data
    val: float  # validation metric
    test: float  # test metric
    train_loss: float  # loss on the same subset as `train`
    joint: float  # test metric with one selected epoch for all tasks; NaN if the run always selects so
    gradient_share: float  # share of the task in the gradient of the shared parameters
    constant: float  # test metric of the best prediction that ignores the input
    best_step: float  # training step of the task's best validation
    best_val: float  # validation metric at the task's best validation, of all in `metrics.csv`
    ids: np.ndarray  # numbers of the test examples, `(n,)`, ascending
    scores: np.ndarray  # contribution of each test example to the metric, `(n,)`; their mean is `test`
    targets: np.ndarray  # targets of the test examples, `(n, d)`
    outputs: int  # number of network outputs for one example

    @property
    def classes(self) -> np.ndarray | None:
        """The class of each test example, `(n,)`, see `classes_of`; None for metrics in `MEANS`."""
        return None if self.metric in MEANS else classes_of(self.targets, self.outputs)

    @property
    def sign(self) -> int:
        """1 if a higher value of the metric is better, else −1."""
        return 1 if self.better == "higher" else -1


@dataclass(frozen=True)
class Run:
    """A finished multi-task run."""

    directory: Path
    seed: int  # its `seed_everything`
    fingerprint: str | None  # hash of the data; None if the data has none
    config: dict[str, Any]  # content of `config.yaml`
    shares: bool  # whether tasks share parameters
    solved: bool  # whether the optimum of the model is computed directly instead of by training steps
    last_step: float  # number of training steps before the last validation; NaN if `metrics.csv` does not record it
    tasks: dict[str, TaskResult]  # results by name of the task, in order


def run_directories(paths: Sequence[str | Path]) -> list[Path]:
    """Find the run directories that paths name, each once; a path may be a folder with the runs of one method.

    In such a folder, runs that stopped before their first checkpoint are skipped.

    Raises:
        UserError: A path does not name a run.
    """
    directories: dict[Path, Path] = {}
    for path in map(Path, paths):
        versions = sorted((d for d in path.glob("*") if is_number(d.name)), key=lambda d: int(d.name))
        if not path.is_dir():
            raise UserError(f"{path}: there is no such run directory")
        if versions and not (path / "results.json").is_file():
            begun = [v for v in versions if any((v / f).is_file() for f in ("results.json", "checkpoints/last.ckpt"))]
            if not begun:
                raise UserError(f"{path}: none of its {len(versions)} versions has a result or a checkpoint")
        elif (path / "config.yaml").is_file() or (path / "results.json").is_file():
            begun = [path]
        else:
            raise UserError(f"{path} is neither a run directory, such as runs/multi_head/0, nor a folder of them")
        directories |= {run.resolve(): run for run in begun}
    return list(directories.values())


def read_run(directory: Path) -> Run:
    """Read a finished multi-task run.

    Raises:
        UserError: The run is not finished, not a multi-task run, or damaged, or its files contradict each other.
    """
    results = read_results(directory)
    rows = _rows(directory / "per_task.csv")
    predictions = _predictions(directory / "predictions.npz")
    if predictions.keys() != rows.keys():
        raise UserError(f"{directory}: predictions.npz and per_task.csv name different tasks; the run is damaged")
    last_step, best = _validations(directory / "metrics.csv", rows)
    tasks = {}
    for name, row in rows.items():
        if (count := row.pop("test_examples")) != len(ids := predictions[name]["ids"]) or (np.diff(ids) == 0).any():
            raise UserError(f"{directory}: predictions.npz must have each test example of task {name!r} exactly once")
        mean = predictions[name]["scores"].mean() if count else math.nan
        if not np.isclose(mean, row["test"], rtol=1e-3, atol=1e-4, equal_nan=True):
            raise UserError(
                f"{directory}: task {name!r} scores {mean:.4g} in predictions.npz and {row['test']:.4g} in "
                "per_task.csv; the run is damaged, test it again"
            )
        tasks[name] = TaskResult(**row, **predictions[name], best_val=best[name])
    seed, fingerprint = results.get("seed"), results.get("data_fingerprint")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"{directory / 'results.json'}: the seed must be a whole number, got {seed!r}")
    with _reading(directory / "config.yaml"):
        config = read_yaml(directory / "config.yaml")
        if not isinstance(config, dict):
            raise ValueError("it has no configuration")
    return Run(
        directory,
        seed,
        fingerprint and str(fingerprint),
        config,
        bool(results.get("shared_parameters")),
        results.get("solved") is True,
        last_step,
        tasks,
    )


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn the errors of a missing or damaged file into one line."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} is not a multi-task run: it has no {file.name}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} is damaged: {reason_of(error, 200)}") from error


def read_results(directory: Path) -> dict[str, Any]:
    """Read the metrics and facts of a finished run.

    Raises:
        UserError: The run is not finished, or its results are damaged.
    """
    file = directory / "results.json"
    if not file.is_file():
        raise UserError(
            f"{directory} is not finished: it has no results.json; finish it with `fit --ckpt_path {directory}`, or "
            "leave it out"
        )
    with _reading(file):
        results = json.loads(read_text(file))
        if not isinstance(results, dict):
            raise ValueError("it is not a JSON object")
    return results


def _rows(file: Path) -> dict[str, dict[str, Any]]:
    """Read `per_task.csv`: the fields of `TaskResult` by name of the task, with the number of test examples."""
    header, lines = read_table(file)
    if missing := [column for column in (*TEXT, *COUNTS, *NUMBERS) if column not in header]:
        raise UserError(f"{file.parent} is not a multi-task run: its per_task.csv has no column {missing[0]!r}")
    rows: dict[str, dict[str, Any]] = {}
    with _reading(file):
        for line in lines:
            cells = dict(zip(header, line, strict=True))
            row: dict[str, Any] = {name: float(cells[name] or "nan") for name in NUMBERS}
            row |= {name: int(cells[name]) for name in COUNTS} | {name: cells[name] for name in TEXT}
            if row["best_step"] < 0:  # the task was never validated
                row["best_step"] = math.nan
            if row["better"] not in ("higher", "lower"):
                raise ValueError(f"expected higher or lower in column better, got {row['better'][:40]!r}")
            rows[row.pop("task")] = row
        if not rows or len(rows) < len(lines):
            raise ValueError("it must have one row for each task, and at least one task")
    return rows


def _validations(file: Path, tasks: Mapping[str, Mapping[str, Any]]) -> tuple[float, dict[str, float]]:
    """Read the number of training steps before the last validation, and the best value of each task's metric.

    Both are NaN if there is none in `metrics.csv`; `tasks` are the rows of `per_task.csv`.
    """
    best = dict.fromkeys(tasks, math.nan)
    if not file.is_file():
        return math.nan, best
    columns = read_columns(file, ["step"])
    for name, task in tasks.items():
        column = f"val/{task['metric']}/{name}"
        values = filter(math.isfinite, numbers_of(file, column, columns.get(column, [])))
        best[name] = (min if task["better"] == "lower" else max)(values, default=math.nan)
    validations = zip(*(values for name, values in columns.items() if name.startswith("val/")), strict=True)
    steps = [step for step, values in zip(columns["step"], validations, strict=False) if any(values)]
    return numbers_of(file, "step", steps[-1:])[0] + 1 if steps else math.nan, best  # the first step is number 0


def _predictions(file: Path) -> dict[str, dict[str, Any]]:
    """Read `predictions.npz`: the fields of `TaskResult` for the test examples by name of the task."""
    with _reading(file):
        arrays = read_arrays(file, ARRAYS)
        names, task = arrays["names"], arrays["task"]
        if any((arrays[name].dtype.kind, arrays[name].ndim) != expected for name, expected in ARRAYS.items()):
            raise ValueError("its arrays have the wrong types or numbers of dimensions")
        if any(len(arrays[name]) != len(task) for name in ARRAYS if name != "names"):
            raise ValueError("its arrays have different lengths")
        if len(task) and not (task.min() >= 0 and task.max() < len(names)):
            raise ValueError(f"its task numbers must be between 0 and {len(names) - 1}")
    fields = {}
    for number, name in enumerate(names.tolist()):
        own = np.flatnonzero(task == number)
        own = own[np.argsort(arrays["id"][own], kind="stable")]
        outputs = int((~np.isnan(arrays["output"][own]).all(0)).sum())  # narrower rows are padded with NaN
        ids, scores, targets = (arrays[key][own] for key in ("id", "score", "target"))
        fields[name] = {"ids": ids, "scores": scores, "targets": targets, "outputs": outputs}
    return fields


def read_arrays(file: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read arrays of a `.npz` file by name; code in the file is never run.

    Raises:
        UserError: The file is damaged, too large, lacks an array, or contains more than plain arrays.
        FileNotFoundError: The file does not exist.
    """
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := [name for name in names if name not in members]:
                raise UserError(f"{file} is damaged: it has no array {missing[0]!r}")
            size, inflated = os.fstat(stream.fileno()).st_size, sum(members[name].file_size for name in names)
            if inflated > RATIO * size + SLACK:
                raise ValueError(f"it would inflate from {size:,} bytes to {inflated / 1e9:,.1f} GB")
            arrays = {}
            for name in names:
                # Other compression methods can expand a few bytes until the memory is full.
                if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{name} is compressed by a method that NumPy does not use")
                with archive.open(members[name]) as member:  # NumPy allocates the size in the header before it reads
                    shape, _, dtype = HEADERS[npy.read_magic(member)](member)
                    size = members[name].file_size - member.tell()
                # Any number of elements of no size takes no bytes in the file.
                negative, sized = min(shape, default=0) < 0, dtype.itemsize > 0
                if dtype.hasobject or negative or not sized or math.prod(shape) * dtype.itemsize != size:
                    raise ValueError(f"{name} is not an array of the type and shape that its header claims")
                with archive.open(members[name]) as member:
                    arrays[name] = npy.read_array(member, allow_pickle=False)
            return arrays
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # NumPy parses headers and zipfile inflates data: both raise many types of errors
        raise UserError(f"{file} is damaged, or holds more than plain arrays: {reason_of(error, 200)}") from error
