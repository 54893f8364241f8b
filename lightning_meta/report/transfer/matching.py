"""Group runs by method, and check that they can be paired with the baseline: same seeds and same data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lightning_meta.errors import UserError
from lightning_meta.metrics import NAMED
from lightning_meta.report.transfer.reading import Run, TaskResult, read_run, run_directories
from lightning_meta.run.differences import HOW
from lightning_meta.tasks.few_rows import enough_rows

# Options that the methods of a fair comparison have in common, as paths in `config.yaml`.
COMMON = (
    "data",
    "checkpoint.monitor",
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
    """Describe each option of `COMMON`, and the training steps, in which methods differ from the baseline.

    Options that were tuned for each method, such as `model.optimizer.lr`, are left out.
    """
    lines = []
    tuned_places = tuple(map(_as_option, tuned))
    for method in methods:
        differ, fitted = f"{method.name} and {baseline.name} differ in", method.is_fitted or baseline.is_fitted
        for place in COMMON:
            if fitted and place.startswith("model."):  # a linear model has no backbone and no optimizer
                continue
            a, b = (_at(each.runs[0].config, place) for each in (method, baseline))
            untuned = (d for d in _differing(a, b, place) if not _as_option(d[0]).startswith(tuned_places))
            for where, left, right in islice(untuned, NAMED_DIFFERENCES):
                lines.append(f"{differ} {where}: {_short(left)} and {_short(right)}")
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
            for where, left, right in _differing(b.config.get("model"), a.config.get("model"), "model"):
                if _as_option(where).rstrip(".") not in HOW:
                    raise UserError(
                        f"{b.directory} and {a.directory} are runs of {name} that differ in {where}: {_short(left)} "
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
        for field in ("metric", "better", "train_examples"):
            a, b = getattr(task, field), getattr(other, field)
            if a != b:
                raise UserError(f"{both} differ in {field} of task {name!r}: {a} and {b}")


def _at(config: dict[str, Any], place: str) -> Any:
    """The value at a path with dots in a configuration; None if it has none."""
    value: Any = config
    for key in place.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _differing(a: Any, b: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each option in which two configurations differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _differing(a.get(key), b.get(key), f"{place}.{key}")
    elif a != b:
        yield place, a, b


def _as_option(place: str) -> str:
    """The name of an option without `init_args`, with a dot at the end, so that a prefix matches whole names."""
    return f"{place.replace('.init_args.', '.')}."


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
