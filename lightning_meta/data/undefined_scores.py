"""Tasks whose score is undefined in a split because all its labels are equal, such as the AUROC of a single class."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

import torch

from lightning_meta.batches import Split
from lightning_meta.data.task_set import TaskSet
from lightning_meta.tasks import Task
from lightning_meta.tasks.few_rows import enough_rows


def undefined_scores(tasks: Mapping[str, Task], sets: Mapping[Split, TaskSet]) -> dict[Split, list[str]]:
    """Return the tasks whose score is undefined in validation and in testing, whatever the predictions.

    Tasks with so few examples that their score does not count are left out, as are those with a metric class.

    Args:
        tasks: The tasks by name, fitted to the training targets.
        sets: The examples of each split.
    """
    undefined: dict[Split, list[str]] = {"val": [], "test": []}
    for split, names in undefined.items():
        targets = sets[split].targets
        enough = dict(zip(tasks, enough_rows([len(targets[name]) for name in tasks]), strict=True))
        for name, task in tasks.items():
            own = targets[name]
            named = task.chosen is None or isinstance(task.chosen, str)
            if enough[name] and named and bool((own == own[:1]).all()):
                outputs = torch.linspace(-1, 1, len(own) * task.outputs, dtype=torch.float64)
                if isnan(task.evaluate(outputs.reshape(len(own), task.outputs), own.cpu())):
                    names.append(name)
    return undefined


def without_score(monitor: str, tasks: Mapping[str, Task], undefined: list[str]) -> list[str]:
    """Return the tasks that a monitored metric depends on, if the score of each of them is undefined; otherwise none.

    Args:
        monitor: Logged name of the metric, such as `val/score`, `val/auroc` or `val/auroc/<task>`.
        tasks: The tasks by name.
        undefined: Names of the tasks whose score is undefined in validation.
    """
    _, _, metric = monitor.partition("/")
    metric, _, only = metric.partition("/")
    names = [name for name, task in tasks.items() if metric in ("score", task.selection) and only in ("", name)]
    return names if set(names) <= set(undefined) else []
