"""Group runs by method, and check that they can be paired with the baseline: same seeds and same data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lightning_meta.errors import UserError
from lightning_meta.metrics import NAMED
from lightning_meta.modes import known_mode
from lightning_meta.report.transfer.reading import Run, read_run, run_directories
from lightning_meta.run.differences import HOW
from lightning_meta.tasks.few_rows import enough_rows

MODE = "checkpoint.mode"
# Options that the methods of a fair comparison have in common, as paths in `config.yaml`.
COMMON = (
    "data",
    "checkpoint.monitor",
    MODE,
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "model.init_args.backbone",
    "model.init_args.optimizer",
    "model.init_args.lr_scheduler",
    "model.init_args.backbone_lr_factor",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
)
NAMED_DIFFERENCES = 5  # maximum number of differences listed for one of these options


@dataclass(frozen=True)
class Method:
    """The runs of one method, one for each seed.

    Attributes:
        name: Name of the folder of the runs; with its parent folder if several methods have the same name.
        runs: Runs in the order of their seeds.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(run.seed for run in self.runs)

    def scores(self, task: str) -> np.ndarray:
        """The contribution of each test example to the metric of a task, `(S, n)`."""
        return np.stack([run.tasks[task].scores for run in self.runs])

    def per_seed(self, tasks: Sequence[str], field: str) -> np.ndarray:
        """A field of `TaskResult`, `(S, T)`."""
        return np.array([[getattr(run.tasks[task], field) for task in tasks] for run in self.runs])

    def converged(self, task: str) -> bool | None:
        """Whether a task's own best validation came before the last one in every seed; None if it is not known."""
        if self.is_fitted:
            return True
        left = np.array([run.last_step - run.tasks[task].best_step for run in self.runs])
        return bool((left > 0).all()) if np.isfinite(left).all() else None

    def lost_by_selection(self, task: str) -> float:
        """How much better the task's metric was at its own best validation than at the kept checkpoint, over seeds."""
        if self.is_fitted:
            return 0.0
        return self.runs[0].tasks[task].sign * (self.mean(task, "best_val") - self.mean(task, "val"))

    @property
    def is_fitted(self) -> bool:
        """Whether this is a linear model, whose optimum is computed directly instead of by training steps."""
        return all(run.solved for run in self.runs)

    def mean(self, task: str, field: str) -> float:
        """The mean over seeds of a field of `TaskResult`."""
        return float(self.per_seed([task], field).mean())


def compared_tasks(methods: Sequence[Method]) -> list[str]:
    """The tasks on which methods can be compared, in the order of the first.

    All means, counts, statements and Δm are over these. A task is left out if it has too few test examples, see
    `enough_rows`, or if its metric is not defined in a run, as where all its test targets are equal.
    """
    tasks = methods[0].runs[0].tasks
    enough = enough_rows([len(task.ids) for task in tasks.values()])
    return [
        name
        for name, counts in zip(tasks, enough, strict=True)
        if counts and all(np.isfinite(m.mean(name, "test")) for m in methods)
    ]


def classes_of_examples(methods: Sequence[Method], task: str) -> np.ndarray | None:
    """The class of each test example of a task, `(n,)`.

    A torchmetrics class that is undefined without some of the examples gives no contributions of examples. In that case
    each example is its own class, so that the task has no interval.

    Returns:
        The classes; None for a metric that is a mean over examples.
    """
    results = [run.tasks[task] for method in methods for run in method.runs]
    # Without contributions all scores equal the metric, see `metrics.values_of_class`.
    if results[0].metric not in NAMED and any((r.scores == r.scores[0]).all() for r in results):
        return np.arange(len(results[0].ids))
    return results[0].classes


def match(runs: Sequence[str | Path], baseline: Sequence[str | Path]) -> tuple[Method, list[Method]]:
    """Read runs, and check that they can be compared.

    Args:
        runs: Run directories, or folders with the runs of one method. Runs of the baseline among them are left out, so
            that a pattern may match all runs.
        baseline: Run directories of the method to compare with, or their folder.

    Returns:
        The baseline, and the other methods in the given order.

    Raises:
        UserError: The runs differ in tasks, data, test examples or seeds, two runs of a method have the same seed or
            different options, or a run cannot be read.
    """
    baseline_runs = run_directories(baseline)
    resolved = {run.resolve() for run in baseline_runs}
    others = [run for run in run_directories(runs) if run.resolve() not in resolved]
    if not others:
        raise UserError(
            "there is nothing to compare: all runs belong to the baseline; name other runs before --baseline"
        )
    baselines = _methods(baseline_runs)
    if len(baselines) > 1:
        raise UserError(f"--baseline: expected the runs of one method, got {', '.join(m.name for m in baselines)}")
    methods = _methods([*baseline_runs, *others])
    first = next(m for m in methods if m.runs[0].directory.resolve() in resolved)
    if {run.directory.resolve() for run in first.runs} != resolved:
        raise UserError(f"--baseline: name all runs of {first.name}, or leave the others out of the comparison")
    methods.remove(first)
    for method in methods:
        if method.seeds != first.seeds:
            raise UserError(
                f"{method.name} was trained with seed {_listed(method.seeds)}, and the baseline {first.name} with "
                f"{_listed(first.seeds)}; runs are paired by seed: train the missing ones, or leave some out"
            )
    for run in (run for method in (first, *methods) for run in method.runs):
        _check_same_data(run, first.runs[0])
    return first, methods


def differences_in_common(baseline: Method, methods: Iterable[Method], tuned: Collection[str] = ()) -> list[str]:
    """Describe each option of `COMMON`, and the number of training steps, in which methods differ from the baseline.

    Args:
        baseline: Method to compare with.
        methods: The other methods.
        tuned: Options that were tuned for each method, such as `model.optimizer.lr`; they are left out.

    Returns:
        Lines, one for each difference.
    """
    lines = []
    tuned_places = tuple(map(_as_option, tuned))
    for method in methods:
        ours, theirs = method.runs[0].config, baseline.runs[0].config
        fitted = method.is_fitted or baseline.is_fitted
        for place in COMMON:
            a, b = ((_mode(config) if place == MODE else _at(config, place)) for config in (ours, theirs))
            if place.startswith("model.") and fitted:  # a linear model has no backbone and no optimizer
                continue
            untuned = (d for d in _differing(a, b, place) if not _as_option(d[0]).startswith(tuned_places))
            for where, left, right in islice(untuned, NAMED_DIFFERENCES):
                lines.append(f"{method.name} and {baseline.name} differ in {where}: {_short(left)} and {_short(right)}")
        steps = [np.mean([run.last_step for run in each.runs]) for each in (method, baseline)]
        if np.isfinite(steps).all() and steps[0] != steps[1] and not fitted:
            lines.append(
                f"{method.name} and {baseline.name} differ in the training steps that were made, on average "
                f"{steps[0]:,.0f} and {steps[1]:,.0f}"
            )
    return lines


def _methods(directories: Sequence[Path]) -> list[Method]:
    """Read runs and group them by their folder; the runs of a method have different seeds and the same model."""
    groups: dict[Path, list[Run]] = {}
    for directory in directories:
        groups.setdefault(directory.resolve().parent, []).append(read_run(directory))
    short = [folder.name for folder in groups]
    methods = []
    for folder, runs in groups.items():
        name = folder.name if short.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}"
        ordered = sorted(runs, key=lambda run: run.seed)
        for a, b in pairwise(ordered):
            if a.seed == b.seed:
                raise UserError(
                    f"{a.directory} and {b.directory} have the same seed, {a.seed}; leave one "
                    "out, or give variants different names with fit --name"
                )
        for run in ordered[1:]:
            for where, a, b in _differing(run.config.get("model"), ordered[0].config.get("model"), "model"):
                if _as_option(where).rstrip(".") in HOW:
                    continue
                raise UserError(
                    f"{run.directory} and {ordered[0].directory} are runs of {name} that differ in {where}: "
                    f"{_short(a)} and {_short(b)}; a method has a single configuration, give variants different names"
                )
        methods.append(Method(name, tuple(ordered)))
    return methods


def _check_same_data(run: Run, first: Run) -> None:
    """Refuse a run with other tasks, data, test examples, metrics or training examples than the first run."""
    if set(run.tasks) != set(first.tasks):
        unshared = sorted(set(run.tasks) ^ set(first.tasks))
        raise UserError(
            f"{run.directory} and {first.directory} have different tasks: {unshared[0]!r} is in one only "
            f"({len(run.tasks)} and {len(first.tasks)} tasks)"
        )
    if run.fingerprint != first.fingerprint:
        raise UserError(
            f"{run.directory} and {first.directory} were run on different data: their data_fingerprint differs "
            f"({_short(run.fingerprint)} and {_short(first.fingerprint)}); a source must give every run the same data, "
            "whatever the run's seed; or the file changed between the runs"
        )
    for name, task in run.tasks.items():
        other = first.tasks[name]
        same = np.array_equal(task.ids, other.ids) and np.array_equal(task.targets, other.targets, equal_nan=True)
        if not same:
            raise UserError(
                f"{run.directory} and {first.directory} were tested on different examples of task {name!r} "
                f"({len(task.ids)} and {len(other.ids)}); compare runs on the same data and split"
            )
        for what, a, b in (
            ("metric", task.metric, other.metric),
            ("which values of the metric are better,", task.better, other.better),
            ("train_examples", task.train_examples, other.train_examples),
        ):
            if a != b:
                raise UserError(f"{run.directory} and {first.directory} differ in {what} of task {name!r}: {a} and {b}")


def _at(config: dict[str, Any], place: str) -> Any:
    """The value at a path with dots in a configuration; None if it has none."""
    value: Any = config
    for key in place.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _mode(config: dict[str, Any]) -> Any:
    """The selection mode of a run, "max" or "min"; if the configuration has none, it follows from the metric's name."""
    mode = _at(config, MODE)
    return known_mode(str(_at(config, "checkpoint.monitor"))) if mode is None else mode


def _differing(a: Any, b: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each option in which two configurations differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            yield from _differing(a.get(key), b.get(key), f"{place}.{key}")
    elif a != b:
        yield place, a, b


def _as_option(place: str) -> str:
    """The name of an option without `init_args`, with a dot at the end, so that a prefix matches whole names."""
    return f"{place.replace('.init_args.', '.')}."


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
