"""Metrics of tasks that are undefined in a split because its labels are equal, such as the AUROC of a single class."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

import torch

from lightning_meta.batches import Split
from lightning_meta.data.task_set import TaskSet
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task
from lightning_meta.tasks.few_rows import enough_rows

Undefined = dict[str, list[str]]
"""The undefined metrics of a split by task, for all tasks whose examples count in means over tasks."""


def undefined_scores(tasks: Mapping[str, Task], sets: Mapping[Split, TaskSet]) -> dict[Split, Undefined]:
    """Return the metrics that are undefined in validation and in testing, whatever the predictions.

    Only metrics of the package are checked: not those of custom tasks or metric classes.

    Args:
        tasks: The tasks by name, fitted to the training targets.
        sets: The examples of each split.
    """
    splits: tuple[Split, ...] = ("val", "test")
    undefined: dict[Split, Undefined] = {}
    for split in splits:
        targets = sets[split].targets
        enough = enough_rows([len(targets[name]) for name in tasks])
        counted = [name for name, counts in zip(tasks, enough, strict=True) if counts]
        undefined[split] = {name: _undefined(tasks[name], targets[name].cpu()) for name in counted}
    return undefined


def _undefined(task: Task, targets: torch.Tensor) -> list[str]:
    """Return the undefined metrics of a task with targets `(M, ...)`."""
    custom = type(task) not in (Binary, Classification, Multilabel, Regression)
    if custom or not bool((targets == targets[:1]).all(0).any()):
        return []
    outputs = torch.linspace(-1, 1, len(targets) * task.outputs, dtype=torch.float64).reshape(-1, task.outputs)
    metrics = [name for name in dict.fromkeys((task.selection, *task.beside)) if name in task.names]
    return [name for name in metrics if isnan(task.evaluate(outputs, targets, name))]


def without_score(monitor: str, tasks: Mapping[str, Task], undefined: Undefined) -> list[str]:
    """Return the tasks that a monitored metric depends on, if it is undefined for each of them; otherwise none.

    Args:
        monitor: Logged name of the metric, such as `val/score`, `val/auroc` or `val/auroc/<task>`.
        tasks: The tasks by name.
        undefined: The undefined metrics of the validation examples.
    """
    split, _, metric = monitor.partition("/")
    metric, _, only = metric.partition("/")
    monitored = {
        name: tasks[name].selection if metric == "score" else metric
        for name in undefined
        if only in ("", name) and metric in ("score", tasks[name].selection, *tasks[name].beside)
    }
    everywhere = split == "val" and all(of_task in undefined[name] for name, of_task in monitored.items())
    return list(monitored) if everywhere else []
