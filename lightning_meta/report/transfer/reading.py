"""Read multi-task run directories and their arrays, and refuse damaged, contradictory or malicious files."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.lib import format as npy

from lightning_meta.errors import UserError, reason_of, some_of
from lightning_meta.metrics import classes_of
from lightning_meta.reading import is_number, open_regular, read_text, read_yaml
from lightning_meta.run.tables import numbers_of, read_table

COLUMNS = ("metric", "train_examples", "test_examples", "train", "val", "test", "train_loss")
OPTIONAL = ("joint", "gradient_share", "constant", "best_step")
MEANS = ("accuracy", "log_loss", "r2", "mae", "rmse")  # metrics that are a mean over examples, or the root of one
SHARE_NOTHING = ("lightning_meta.Independent",)
ARRAYS = {"names": "U", "task": "i", "id": "i", "score": "f", "output": "f", "target": "f"}
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
RATIO, SLACK = 100, 2**28  # the arrays may take at most 100 times the size of the file plus 256 MiB


@dataclass(frozen=True)
class TaskResult:
    """The results of one task in one run.

    Attributes:
        metric: Name of the metric by which the task is selected and compared.
        better: Whether a "higher" or a "lower" value of the metric is better.
        train_examples: Number of training examples.
        train: Metric at the selected checkpoint, on a fixed subset of the training data.
        val: Validation metric.
        test: Test metric.
        train_loss: Loss on the same subset and at the same checkpoint as `train`.
        joint: Test metric with one selected epoch for all tasks; NaN if the run always selects so.
        gradient_share: Share of the task in the gradient of the shared parameters; NaN if it was not recorded.
        constant: Test metric of the best prediction that ignores the input; NaN if it was not recorded.
        best_step: Training step of the task's best validation; NaN if it was not recorded, or there was none.
        best_val: Validation metric at the task's best validation, of all in `metrics.csv`; NaN if it is not there.
        ids: Numbers of the test examples, `(n,)`, ascending.
        scores: Contribution of each test example to the metric, `(n,)`; their mean is `test`.
        targets: Targets of the test examples, `(n, d)`.
        outputs: Number of network outputs for one example.
    """

    metric: str
    better: str
    train_examples: int
    train: float
    val: float
    test: float
    train_loss: float
    joint: float
    gradient_share: float
    constant: float
    best_step: float
    best_val: float
    ids: np.ndarray
    scores: np.ndarray
    targets: np.ndarray
    outputs: int

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
    """A finished multi-task run.

    Attributes:
        directory: The run directory.
        seed: Seed of the run, its `seed_everything`.
        fingerprint: Hash of the data; None if the data has none.
        config: Content of `config.yaml`.
        shares: Whether tasks share parameters.
        solved: Whether the optimum of the model is computed directly instead of by training steps.
        last_step: Number of training steps before the last validation; NaN if `metrics.csv` does not record it.
        tasks: Results by name of the task, in order.
    """

    directory: Path
    seed: int
    fingerprint: str | None
    config: dict[str, Any]
    shares: bool
    solved: bool
    last_step: float
    tasks: dict[str, TaskResult]


def run_directories(paths: Sequence[str | Path]) -> list[Path]:
    """Find the run directories that paths name, each once.

    Args:
        paths: Run directories, or folders with the runs of one method. In such a folder, runs that stopped before their
            first checkpoint are skipped.

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
    arrays = _arrays(directory / "predictions.npz", results)
    names = [str(n) for n in arrays["names"]]
    if sorted(names) != sorted(rows):
        raise UserError(f"{directory}: predictions.npz and per_task.csv name different tasks; the run is damaged")
    last_step, best = _validations(directory / "metrics.csv", rows)
    tasks = {name: _task(directory, name, rows[name], arrays, names.index(name), best[name]) for name in rows}
    seed, fingerprint = results.get("seed"), results.get("data_fingerprint")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"{directory / 'results.json'}: the seed must be a whole number, got {seed!r}")
    shared = results.get("shared_parameters")  # earlier versions did not record it
    shares = shared > 0 if isinstance(shared, int) else results.get("model") not in SHARE_NOTHING
    config = _config(directory / "config.yaml")
    return Run(
        directory,
        seed,
        fingerprint and str(fingerprint),
        config,
        shares,
        results.get("solved") is True,
        last_step,
        tasks,
    )


def _validations(file: Path, tasks: Mapping[str, Mapping[str, str]]) -> tuple[float, dict[str, float]]:
    """The validations of a run in `metrics.csv`.

    Args:
        file: The file.
        tasks: The row of each task in `per_task.csv`.

    Returns:
        The number of training steps before the last validation, and the best value of each task's metric; NaN if there
        is none.
    """
    best = dict.fromkeys(tasks, math.nan)
    if not file.is_file():
        return math.nan, best
    header, rows = read_table(file, ["step"])
    columns = {name: i for i, name in enumerate(header) if name.startswith("val/")}
    steps = [row[header.index("step")] for row in rows if any(row[i] for i in columns.values())]
    for name, task in tasks.items():
        if (i := columns.get(column := f"val/{task['metric']}/{name}")) is not None:
            values = numbers_of(file, column, [row[i] for row in rows])
            known = [value for value in values if math.isfinite(value)]
            best[name] = (min if task.get("better") == "lower" else max)(known, default=math.nan)
    return numbers_of(file, "step", steps[-1:])[0] + 1 if steps else math.nan, best  # the first step is number 0


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
    try:
        results = json.loads(read_text(file))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file} is damaged: {reason_of(error, 200)}") from error
    if not isinstance(results, dict):
        raise UserError(f"{file} is damaged: it is not a JSON object")
    return results


def _rows(file: Path) -> dict[str, dict[str, str]]:
    """Read `per_task.csv`: the cells by column, by name of the task."""
    if not file.exists():
        raise UserError(f"{file.parent} is not a multi-task run: it has no per_task.csv")
    header, lines = read_table(file)
    if missing := [c for c in ("task", *COLUMNS) if c not in header]:
        raise UserError(
            f"{file.parent} is not a multi-task run: its per_task.csv has no column {missing[0]!r}, "
            f"only {some_of((name[:40] for name in header), 6) or 'nothing'}"
        )
    table = [dict(zip(header, line, strict=True)) for line in lines]
    names = [row["task"] for row in table]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{file} is damaged: it must have one complete row for each task, and at least one task")
    return {row["task"]: row for row in table}


def _arrays(file: Path, results: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read `predictions.npz`, and check the types and shapes of its arrays."""
    try:
        arrays = read_arrays(file, ARRAYS)
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} is not a multi-task run: it has no predictions.npz") from error
    except KeyError as error:
        raise UserError(
            f"{file.parent} is not a multi-task run: its predictions.npz has no array {error.args[0]!r} "
            f"(its model is {results.get('model')})"
        ) from error
    for name, kind in ARRAYS.items():
        if arrays[name].dtype.kind != kind:
            raise UserError(f"{file} is damaged: array {name!r} has the wrong type {arrays[name].dtype}")
    n, tasks = len(arrays["task"]) if arrays["task"].ndim else 0, arrays["task"]
    flat = all(arrays[k].shape == (n,) for k in ("task", "id", "score")) and arrays["names"].ndim == 1
    if not flat or any(arrays[k].ndim != 2 or len(arrays[k]) != n for k in ("output", "target")):
        raise UserError(f"{file} is damaged: its arrays have the wrong shapes or different lengths")
    if (wrong := tasks[(tasks < 0) | (tasks >= len(arrays["names"]))]).size:
        raise UserError(
            f"{file} is damaged: a row has the task number {wrong[0]}, but there are {len(arrays['names'])} tasks"
        )
    return arrays


def _task(
    directory: Path, name: str, row: dict[str, str], arrays: dict[str, np.ndarray], number: int, best: float
) -> TaskResult:
    """Combine a row of `per_task.csv`, and the best validation, with the predictions of the task of a number."""
    own = np.flatnonzero(arrays["task"] == number)
    own = own[np.argsort(arrays["id"][own], kind="stable")]
    ids, scores = arrays["id"][own], arrays["score"][own]
    try:
        numbers = {k: float(row[k]) if row[k] else math.nan for k in COLUMNS if k != "metric"}
        numbers |= {k: float(row.get(k) or "nan") for k in OPTIONAL}
        examples = int(row["train_examples"])
    except ValueError as error:
        raise UserError(f"{directory / 'per_task.csv'}, task {name!r}: {reason_of(error, 200)}") from error
    if len(ids) != numbers["test_examples"] or (np.diff(ids) == 0).any():
        raise UserError(f"{directory}: predictions.npz must have each test example of task {name!r} exactly once")
    test, mean = numbers["test"], scores.mean() if len(ids) else math.nan
    if not np.isclose(mean, test, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UserError(
            f"{directory}: task {name!r} scores {mean:.4g} in predictions.npz and {test:.4g} in "
            "per_task.csv; the run is damaged, test it again"
        )
    better = row.get("better") or "higher"  # earlier versions had no other metrics
    if better not in ("higher", "lower"):
        raise UserError(
            f"{directory / 'per_task.csv'}, task {name!r}: expected higher or lower as better, got {better[:40]!r}"
        )
    outputs = int((~np.isnan(arrays["output"][own]).all(0)).sum())  # narrower rows are padded with NaN
    rest: dict[str, Any] = {k: numbers[k] for k in ("train", "val", "test", "train_loss", *OPTIONAL)}
    if rest["best_step"] < 0:  # the task was never validated
        rest["best_step"] = math.nan
    rest["best_val"] = best
    targets = arrays["target"][own]
    return TaskResult(row["metric"], better, examples, **rest, ids=ids, scores=scores, targets=targets, outputs=outputs)


def _config(file: Path) -> dict[str, Any]:
    try:
        config = read_yaml(file)
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} has no config.yaml; the run is damaged") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is damaged: {reason_of(error, 200)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged: it has no configuration")
    return config


def read_arrays(file: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays of a `.npz` file by name; code in the file is never run.

    Args:
        file: File written by `numpy.savez` or `savez_compressed`.
        names: Names of the arrays to read.

    Returns:
        The arrays by name.

    Raises:
        UserError: The file is damaged, too large, or contains more than plain arrays.
        KeyError: An array is missing; the argument is its name.
        FileNotFoundError: The file does not exist.
    """
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            members = {info.filename: info for info in archive.infolist()}
            requested = {name: members.get(f"{name}.npy") for name in names}
            if missing := [name for name, info in requested.items() if info is None]:
                raise KeyError(missing[0])
            infos = {name: info for name, info in requested.items() if info is not None}
            size, inflated = os.fstat(stream.fileno()).st_size, sum(info.file_size for info in infos.values())
            if inflated > RATIO * size + SLACK:
                raise ValueError(f"it would inflate from {size:,} bytes to {inflated / 1e9:,.1f} GB")
            return {name: _read(archive, info) for name, info in infos.items()}
    except (FileNotFoundError, KeyError, UserError):
        raise
    except Exception as error:  # NumPy parses headers and zipfile inflates data: both raise many types of errors
        raise UserError(f"{file} is damaged, or holds more than plain arrays: {reason_of(error, 200)}") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read an array after checking that its header claims as many bytes as there are."""
    # Other compression methods can expand a few bytes until the memory is full.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed by a method that NumPy does not use")
    with archive.open(info) as member:  # NumPy allocates the size in the header before it reads
        version = npy.read_magic(member)
        if version not in HEADERS:
            raise ValueError(f"{info.filename} has an unsupported version of NumPy's format")
        shape, _, dtype = HEADERS[version](member)
        elements = reduce(mul, shape, 1)
        claimed, held = elements * dtype.itemsize, info.file_size - member.tell()
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds objects")
        if elements and not dtype.itemsize:  # any number of these takes no bytes in the file
            raise ValueError(f"{info.filename} has elements of no size")
        if claimed != held or min(shape, default=0) < 0:
            raise ValueError(f"{info.filename} says that it has {claimed:,} bytes, and has {held:,}")
    with archive.open(info) as member:
        array: np.ndarray = npy.read_array(member, allow_pickle=False)
    return array
