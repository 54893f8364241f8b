"""Scores of a fixed set of tasks, as logged and stored in the run directory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite, isnan, nan
from typing import Any

from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.multitask.records import RecordTable
from lightning_meta.tasks import Task, TasksSpec
from lightning_meta.tasks.few_rows import enough_rows
from lightning_meta.tasks.refitting import rebuilt

STAGES = ("train", "val", "test")
NOT_BETTER = "not better than a constant"
"""The mark of a task whose test score is not better than the best constant prediction."""


def mean_of_known(values: Tensor | Sequence[float]) -> float:
    """The mean of all values that are not NaN; NaN if there are none."""
    known = [v for v in (values.tolist() if isinstance(values, Tensor) else values) if not isnan(v)]
    return sum(known) / len(known) if known else nan


def by_task(stage: str, scores: Mapping[str, Mapping[str, float]], few: Collection[str] = ()) -> dict[str, float]:
    """Scores by their logged names: the mean of each metric over the tasks that have it, and those of each task.

    Args:
        stage: `train`, `val` or `test`.
        scores: Metrics of each task by name; NaN if undefined.
        few: Tasks with too few examples to count in the means.
    """
    own: dict[str, float] = {}
    of_metric: dict[str, list[float]] = {}
    for name, metrics in scores.items():
        for metric, score in metrics.items():
            own[f"{stage}/{metric}/{name}"] = score
            # A task with few examples keeps its own score; only the mean leaves it out.
            of_metric.setdefault(metric, []).append(nan if name in few else score)
    return {**{f"{stage}/{m}": mean_of_known(of) for m, of in of_metric.items()}, **own}


def counted(stage: str, scores: Mapping[str, Mapping[str, float]], few: Collection[str] = ()) -> dict[str, float]:
    """The number of tasks in each mean of `by_task`, by its logged name, such as `val/auroc_tasks`."""
    numbers: dict[str, float] = {}
    for task, metrics in scores.items():
        for metric, score in metrics.items():
            name = f"{stage}/{metric}_tasks"
            numbers[name] = numbers.get(name, 0) + (task not in few and not isnan(score))
    return numbers


def few_rows(table: RecordTable) -> set[str]:
    """The tasks whose score does not count in means over tasks, since they have too few examples in the split."""
    enough = enough_rows(table.counts)
    return {name for name, counts in zip(table.of, enough, strict=True) if not counts}


def comparable(tasks: Mapping[str, Task], scores: Sequence[float], few: Collection[str]) -> list[float]:
    """The tasks' scores as they enter `val/score`, higher is better; −∞ stays, for predictions that are not finite.

    Args:
        tasks: The tasks by name.
        scores: The selection metric of each.
        few: Tasks with too few examples to count, which get NaN.
    """
    # `Task.comparable` would raise −∞ to the task's floor, and a diverged task would then look like a merely bad one.
    worst = {"max": -inf, "min": inf}
    return [
        nan if name in few else -inf if score == worst[task.selection_mode] else task.comparable(score)
        for (name, task), score in zip(tasks.items(), scores, strict=True)
    ]


def comparable_of(table: RecordTable, tasks: Mapping[str, Task]) -> list[float]:
    """The scores of a split as they enter its mean; see `comparable`."""
    if not table.comparable:
        table.comparable = comparable(tasks, list(table.ranked_scores(tasks).values()), few_rows(table))
    return table.comparable


def at_floor(tasks: Mapping[str, Task], scores: Sequence[float], few: Collection[str] = ()) -> str:
    """A line on the tasks that count as their floor in `val/score`, and would decide it alone; "" where none does."""
    held = [
        (name, task, score)
        for (name, task), score in zip(tasks.items(), scores, strict=True)
        if name not in few and isfinite(score) and task.comparable(score) == task.floor
    ]
    if not held:
        return ""
    # Scores of different tasks are compared in units of their targets; the worst one is named.
    name, task, score = max(held, key=lambda of: abs(of[2]) / of[1].unit)
    more = f", and so do {len(held) - 1} more of {len(tasks)} tasks" if len(held) > 1 else ""
    return (
        f"{task.selection} of task {name!r} is {score:.4g}; it counts as {task.floor:.3g} in the mean over "
        f"tasks{more}, so that one task cannot decide alone: look at its targets in this split"
    )


def as_before(spec: TasksSpec, stored: Any) -> TasksSpec:
    """The tasks with the default metrics of earlier versions, which did not depend on the balance of labels.

    Args:
        spec: Specification by the data module.
        stored: Description of `TasksSpec` in the checkpoint.
    """
    tasks = dict(spec.tasks)
    described = ((stored or {}).get("init_args") or {}).get("tasks") if isinstance(stored, Mapping) else None
    for name, task in tasks.items():
        of_task = described.get(name) if isinstance(described, Mapping) else None
        init_args = of_task.get("init_args") if isinstance(of_task, Mapping) else None
        # Best scores before and after the resume must be of one metric, so the default of that time is kept.
        if not isinstance(init_args, Mapping):
            continue
        fitted = of_task.get("fitted") if isinstance(of_task, Mapping) else None
        values = {**init_args, **(fitted if isinstance(fitted, Mapping) else {})}
        recorded = {**task.__dict__.get("_init_args", {}), **task.fitted_values}
        # A class derived from a built-in one was not fitted to its labels.
        unfitted = bool(recorded.get("frequencies")) and not values.get("frequencies")
        if "metric" in recorded and ("metric" not in values or unfitted):
            plain = rebuilt(task, metric=None)
            if plain.selection != task.selection:
                tasks[name] = plain
        elif recorded.get("reference") and "reference" not in values:
            tasks[name] = rebuilt(task, reference=())
    return spec if tasks == dict(spec.tasks) else replace(spec, tasks=tasks)


def rows_of_tasks(
    spec: TasksSpec, tables: Mapping[str, RecordTable], best_steps: Sequence[int], shares: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The rows of `per_task.csv`; `constant` is the test score of the best prediction that ignores the input.

    Args:
        spec: What the tasks are.
        tables: Predictions by split, and under `joint` those on the test split of weights that were selected jointly.
        best_steps: The training step of each task's best validation.
        shares: The share of each task in the gradient, where it was recorded.
    """
    rows, few = [], few_rows(tables["test"])
    for (name, task), step in zip(spec.tasks.items(), best_steps, strict=True):
        found = {stage: table.of[name] for stage, table in tables.items() if name in table.of}
        better = "higher" if task.selection_mode == "max" else "lower"
        row: dict[str, Any] = {"task": name, "metric": task.selection, "better": better}
        row |= {"train_examples": spec.train_examples[name]}
        row |= {"test_examples": len(found["test"].ids), "best_step": step}
        row |= {stage: found[stage].score(task) if stage in found else "" for stage in STAGES}
        row |= {f"{stage}_loss": found[stage].loss() if stage in found else "" for stage in STAGES}
        row |= {"joint": found["joint"].score(task) if "joint" in found else "", "gradient_share": shares.get(name, "")}
        row["constant"] = found["test"].constant_score(task)
        # A tie counts as not better: a network that ignores its input reaches it.
        not_better = task.comparable(row["test"]) <= task.comparable(row["constant"])
        count = row["test_examples"]
        too_few = f"{count} test example{'s' * (count != 1)}, not in the means"
        row["mark"] = too_few if name in few else NOT_BETTER if not_better else ""
        rows.append(row)
    return rows


def in_different_units(spec: TasksSpec) -> set[str]:
    """The metrics that are in the units of targets whose units differ or are not stated, so that a mean says nothing.

    The tasks of a task column have the same target. Nothing is known of the units of sources other than a table.
    """
    if spec.table is None or spec.table.task_column:
        return set()
    units = [target.unit for target in spec.table.targets if target.name in spec.tasks and not target.classes]
    comparable = len(units) < 2 or (len(set(units)) == 1 and units[0] != "")
    return set() if comparable else {"mae", "rmse"}


def check_same_tasks(own: TasksSpec, given: TasksSpec) -> None:
    """Refuse tasks other than those of the module.

    Raises:
        UserError: The tasks, their types, outputs or input shapes differ.
    """
    # The order matters, too: losses, weights and stored scores are vectors over tasks.
    if list(own.tasks) != list(given.tasks):
        missing = [name for name in own.tasks if name not in given.tasks]
        extra = [name for name in given.tasks if name not in own.tasks]
        lacks = f"the data lacks {missing[:5]}" if missing else f"the data also has {extra[:5]}"
        raise UserError(
            "tasks: the module was made for others: " + (lacks if missing or extra else "the order differs")
        )
    for name, task in own.tasks.items():
        other = given.tasks[name]
        if type(task) is not type(other) or task.outputs != other.outputs:
            made, found = (f"{type(t).__name__} of {t.outputs} outputs" for t in (task, other))
            raise UserError(f"task {name!r}: the module was made for {made}, the data has {found}")
        if own.input_shapes[name] != given.input_shapes[name]:
            shapes = f"{own.input_shapes[name]}, the data has {given.input_shapes[name]}"
            raise UserError(f"task {name!r}: the module was made for inputs of shape {shapes}")
