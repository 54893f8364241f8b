"""Group runs by method, and check that they can be paired with the baseline: same seeds and same data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lightning_meta.errors import UserError
from lightning_meta.metrics import NAMED
from lightning_meta.report.transfer.reading import Run, TaskResult, read_run, run_directories
from lightning_meta.run.differences import HOW
from lightning_meta.tasks.few_rows import enough_rows

# Options that the methods of a fair comparison have in common, with those below them.
COMMON = (
    "data",
    "checkpoint.monitor",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "model.backbone",
    "model.optimizer",
    "model.lr_scheduler",
    "model.backbone_lr_factor",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
)
# Fields of `TaskResult` that all runs have in common, as messages name them.
COMPARED = {
    "metric": "the metric",
    "better": "which values of the metric are better,",
    "train_examples": "the training examples",
}
MOST = 10  # differences that are listed for a method


@dataclass(frozen=True)
class Method:
    """The runs of one method, one for each seed."""

    name: str  # name of the folder of the runs; with its parent folder if several methods have the same name
    runs: tuple[Run, ...]  # in the order of their seeds

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(run.seed for run in self.runs)

    @property
    def tasks(self) -> dict[str, TaskResult]:
        """The results of the first run by task, for what is the same in all runs."""
        return self.runs[0].tasks

    def scores(self, task: str) -> np.ndarray:
        """The contribution of each test example to the metric of a task, `(S, n)`."""
        return np.stack([run.tasks[task].scores for run in self.runs])

    def per_seed(self, tasks: Sequence[str], field: str) -> np.ndarray:
        """A field of `TaskResult`, `(S, T)`."""
        return np.array([[getattr(run.tasks[task], field) for task in tasks] for run in self.runs])

    def mean(self, task: str, field: str) -> float:
        """The mean over seeds of a field of `TaskResult`."""
        return float(self.per_seed([task], field).mean())

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
        return self.tasks[task].sign * (self.mean(task, "best_val") - self.mean(task, "val"))

    @property
    def is_fitted(self) -> bool:
        """Whether this is a linear model, whose optimum is computed directly instead of by training steps."""
        return all(run.solved for run in self.runs)


def compared_tasks(methods: Sequence[Method]) -> list[str]:
    """The tasks on which methods can be compared, in the order of the first.

    All means, counts, statements and Δm are over these. A task is left out if it has too few test examples, see
    `enough_rows`, or if its metric is not defined in a run, as where all its test targets are equal.
    """
    tasks = methods[0].tasks
    enough = enough_rows([len(task.ids) for task in tasks.values()])
    return [
        name
        for name, counts in zip(tasks, enough, strict=True)
        if counts and all(np.isfinite(m.mean(name, "test")) for m in methods)
    ]


def classes_of_examples(methods: Sequence[Method], task: str) -> np.ndarray | None:
    """The class of each test example of a task, `(n,)`; None for a metric that is a mean over examples."""
    results = [run.tasks[task] for method in methods for run in method.runs]
    # A torchmetrics class that is undefined without some of the examples gives no contributions of examples, and all
    # scores equal the metric, see `metrics.values_of_class`. With a class for each example the task has no interval.
    if results[0].metric not in NAMED and any((r.scores == r.scores[0]).all() for r in results):
        return np.arange(len(results[0].ids))
    return results[0].classes


def match(runs: Sequence[str | Path], baseline: Sequence[str | Path]) -> tuple[Method, list[Method]]:
    """Read runs, and check that they can be compared; return the baseline, and the other methods in the given order.

    Raises:
        UserError: The runs differ in tasks, data, test examples or seeds, two runs of a method have the same seed or
            different options, or a run cannot be read.
    """
    chosen = run_directories(baseline)
    folders = dict.fromkeys(run.resolve().parent for run in chosen)
    if len(folders) > 1:
        raise UserError(f"--baseline: expected the runs of one method, got {', '.join(f.name for f in folders)}")
    directories = run_directories([*baseline, *runs])  # each once; the baseline's come first, and so does its method
    if len(directories) == len(chosen):
        raise UserError(
            "there is nothing to compare: all runs belong to the baseline; name other runs before --baseline"
        )
    first, *methods = _methods(directories)
    if len(first.runs) > len(chosen):
        raise UserError(f"--baseline: name all runs of {first.name}, or leave the others out of the comparison")
    for method in methods:
        if method.seeds != first.seeds:
            ours, theirs = (", ".join(map(str, each.seeds)) for each in (method, first))
            raise UserError(
                f"{method.name} was trained with seed {ours}, and the baseline {first.name} with {theirs}; runs are "
                "paired by seed: train the missing ones, or leave some out"
            )
    for run in (run for method in (first, *methods) for run in method.runs):
        _check_same_data(run, first.runs[0])
    return first, methods


def differences_in_common(baseline: Method, methods: Sequence[Method], tuned: Collection[str] = ()) -> list[str]:
    """Describe the options of `COMMON`, and the training steps, in which methods differ from the baseline.

    Options that were tuned for each method, such as `model.optimizer.lr`, are left out.
    """
    lines = []
    left_out = [name.replace(".init_args.", ".") for name in tuned]
    for method in methods:
        differ, fitted = f"{method.name} and {baseline.name} differ in", method.is_fitted or baseline.is_fitted
        options = [
            f"{differ} {name}: {_short(left)} and {_short(right)}"
            for name, left, right in _differing(method.runs[0], baseline.runs[0])
            # A linear model has no backbone and no optimizer.
            if _is_below(name, COMMON) and not _is_below(name, left_out) and not (fitted and _is_below(name, ["model"]))
        ]
        lines += options[:MOST]
        ours, theirs = (np.mean([run.last_step for run in each.runs]) for each in (method, baseline))
        if np.isfinite(ours - theirs) and ours != theirs and not fitted:
            lines.append(f"{differ} the training steps that were made, on average {ours:,.0f} and {theirs:,.0f}")
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
        runs.sort(key=lambda run: run.seed)
        for a, b in pairwise(runs):
            if a.seed == b.seed:
                raise UserError(
                    f"{a.directory} and {b.directory} have the same seed, {a.seed}; leave one "
                    "out, or give variants different names with fit --name"
                )
            for option, left, right in _differing(b, a):
                if _is_below(option, ["model"]) and option not in HOW:
                    raise UserError(
                        f"{b.directory} and {a.directory} are runs of {name} that differ in {option}: {_short(left)} "
                        f"and {_short(right)}; a method has a single configuration, give variants different names"
                    )
        methods.append(Method(name, tuple(runs)))
    return methods


def _check_same_data(run: Run, first: Run) -> None:
    """Refuse a run with other tasks, data, test examples, metrics or training examples than the first run."""
    both = f"{run.directory} and {first.directory}"
    if unshared := sorted({*run.tasks} ^ {*first.tasks}):
        raise UserError(f"{both} have different tasks: {unshared[0]!r} is in one only")
    if run.fingerprint != first.fingerprint:
        raise UserError(
            f"{both} were run on different data: their data_fingerprint differs ({_short(run.fingerprint)} and "
            f"{_short(first.fingerprint)}); a source must give every run the same data, whatever the run's seed; or "
            "the file changed between the runs"
        )
    for name, task in run.tasks.items():
        other = first.tasks[name]
        same = np.array_equal(task.ids, other.ids) and np.array_equal(task.targets, other.targets, equal_nan=True)
        if not same:
            raise UserError(
                f"{both} were tested on different examples of task {name!r} ({len(task.ids)} and {len(other.ids)}); "
                "compare runs on the same data and split"
            )
        for field, what in COMPARED.items():
            a, b = getattr(task, field), getattr(other, field)
            if a != b:
                raise UserError(f"{both} differ in {what} of task {name!r}: {a} and {b}")


def _differing(a: Run, b: Run) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each option in which two runs differ, with both values."""
    ours, theirs = _options(a.config), _options(b.config)
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            yield name, ours.get(name), theirs.get(name)


def _options(config: dict[str, Any], section: str = "") -> dict[str, Any]:
    """The options of a configuration by name, without `init_args`."""
    options: dict[str, Any] = {}
    for key, value in config.items():
        name = section if key == "init_args" else f"{section}.{key}".lstrip(".")
        options |= _options(value, name) if isinstance(value, dict) else {name: value}
    return options


def _is_below(name: str, options: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{option}.") for option in options)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
