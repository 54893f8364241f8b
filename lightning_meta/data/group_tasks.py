"""Make one classification task of each group of classes, such as an alphabet, a script or a superclass."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.hashes import Hashes, of_sets
from lightning_meta.data.pool import Pool
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.tasks import Classification, Task


def tasks_of_groups(pools: dict[Split, Pool]) -> tuple[dict[str, Task], dict[Split, TaskSet]]:
    """Make a task of each group of classes; labels follow the order of the group's classes in the pool.

    Args:
        pools: Pools of the splits, with the same classes in the same order.

    Returns:
        The tasks by the name of their group ("all" for classes without one), in order of their first class, and the
        examples of the splits.

    Raises:
        UserError: Splits have different classes, or a group has a single class.
    """
    train = pools["train"]
    for split in SPLITS:
        if pools[split].names != train.names or pools[split].groups != train.groups:
            raise UserError(f"source: the {split} split holds other classes than the train split")
    members = _members(train)
    for group, classes in members.items():
        if len(classes) < 2:
            raise UserError(
                f"task {group!r} has the single class {train.names[classes[0]]!r}; there is nothing to tell apart"
            )
    tasks: dict[str, Task] = {group: Classification(len(classes)) for group, classes in members.items()}
    return tasks, {split: _set(pools[split], members) for split in SPLITS}


def hashes_of_groups(pools: Mapping[Split, Pool]) -> Hashes:
    """Return the hashes of the task sets that `tasks_of_groups` makes."""
    members = _members(pools["train"])
    return of_sets({split: _set(pools[split], members) for split in SPLITS})


def _members(pool: Pool) -> dict[str, list[int]]:
    """Return the classes of each group by its name."""
    members: dict[str, list[int]] = {}
    for number, group in enumerate(pool.groups):
        members.setdefault(group or "all", []).append(number)
    return members


def _set(pool: Pool, members: Mapping[str, list[int]]) -> TaskSet:
    """Make the task set of all groups. Examples are not copied if the classes of each group are adjacent."""
    order = [number for classes in members.values() for number in classes]
    if order != sorted(order):
        pool = pool.select(order)
    sizes = dict(zip(members, pool.sizes.split([len(classes) for classes in members.values()]), strict=True))
    targets = {group: torch.arange(len(each)).repeat_interleave(each) for group, each in sizes.items()}
    rows = torch.arange(len(pool.x)).split([len(y) for y in targets.values()])
    return TaskSet(pool.x, targets, dict(zip(targets, rows, strict=True)))
