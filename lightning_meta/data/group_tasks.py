"""Classes in groups as tasks: an alphabet, a script or a superclass is one task of telling its classes apart."""

from __future__ import annotations

import torch

from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.data.pool import Pool
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.tasks import Classification, Task


def tasks_of_groups(pools: dict[Split, Pool]) -> tuple[dict[str, Task], dict[Split, TaskSet]]:
    """Make a task of each group of classes; its labels count the group's classes in the order of the pool.

    Args:
        pools: The same classes in every split, in the same order.

    Returns:
        The tasks by the name of their group ("all" for classes without one), in order of their first class, and the
        examples of the splits.

    Raises:
        UserError: Splits hold different classes, or a group has a single class.
    """
    train = pools["train"]
    for split in SPLITS:
        if pools[split].names != train.names or pools[split].groups != train.groups:
            raise UserError(f"source: the {split} split holds other classes than the train split")
    members: dict[str, list[int]] = {}
    for number, group in enumerate(train.groups):
        members.setdefault(group or "all", []).append(number)
    for group, classes in members.items():
        if len(classes) < 2:
            raise UserError(
                f"task {group!r} has the single class {train.names[classes[0]]!r}; there is nothing to tell apart"
            )
    tasks: dict[str, Task] = {group: Classification(len(classes)) for group, classes in members.items()}
    return tasks, {
        split: TaskSet.of_examples({g: _examples(pools[split], c) for g, c in members.items()}) for split in SPLITS
    }


def _examples(pool: Pool, classes: list[int]) -> Examples:
    chosen = pool.select(classes)
    return Examples(chosen.x, torch.arange(len(classes)).repeat_interleave(chosen.sizes))
