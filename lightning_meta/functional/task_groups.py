"""Which tasks to train together, from how a step of one task changes the loss of another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.checks import whole
from lightning_meta.errors import UserError

EXACT = 14  # tasks: the search looks at 3^13 = 1.6 million pairs of a set and a subset of it


class TaskGroups(NamedTuple):
    """A partition of tasks.

    Attributes:
        groups: The numbers of the tasks of each group, ascending; groups stand in the order of their first tasks.
        gain: The total predicted gain, the sum of `group_gains`.
        exact: Whether no partition has a larger one; else it is that of a search that may miss the best.
    """

    groups: tuple[tuple[int, ...], ...]
    gain: float
    exact: bool


def task_groups(affinity: Tensor, groups: int) -> TaskGroups:
    r"""Divide tasks into at most k groups with the largest total predicted gain.

    A task is predicted to gain the mean affinity of the others of its group onto it, and nothing where it is alone:
    $\sum_{G} \sum_{j \in G} \frac{1}{|G| - 1} \sum_{i \in G, i \ne j} Z_{i \to j}$.

    Up to 14 tasks the best partition is found, by dynamic programming over sets of tasks. For more, groups are merged
    from single tasks on, always the two whose union adds the most, and then tasks move to other groups, always the one
    that adds the most, until none adds anything.

    Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning (NeurIPS 2021): Z and the mean over the
    others of a group are theirs. Their search lets a task be trained in several groups and be taken from one of them;
    here it is in one group, so that the groups together see as many examples as all tasks in one network do.

    >>> affinity = torch.tensor([[1.0, 0.3, -0.1], [0.2, 1.0, -0.2], [-0.1, 0.1, 1.0]])
    >>> task_groups(affinity, groups=2).groups
    ((0, 1), (2,))

    Args:
        affinity: $Z_{i \to j}$, `(T, T)`, a row for each task i that steps, as `inter_task_affinity` gives it and
            `recorded_affinity` reads it; the diagonal is not looked at.
        groups: k, the most groups.

    Raises:
        UserError: The affinity is not a matrix of two tasks or more, one is not finite, or there is no group.
    """
    whole(1, groups=groups)
    z = _checked(affinity)
    found = _best(z, min(groups, len(z))) if len(z) <= EXACT else _merged_and_moved(z, groups)
    ordered = tuple(sorted(tuple(sorted(group)) for group in found))
    return TaskGroups(ordered, float(group_gains(affinity, ordered).sum()), len(z) <= EXACT)


def group_gains(affinity: Tensor, groups: Sequence[Iterable[int]]) -> Tensor:
    """The predicted gain of each task in its group: `(T,)` float64, 0 for a task that is alone or in no group.

    Args:
        affinity: `(T, T)`, as for `task_groups`.
        groups: The numbers of the tasks of each group.
    """
    z = torch.from_numpy(_checked(affinity))
    gains = torch.zeros(len(z), dtype=torch.float64)
    for group in groups:
        tasks = list(group)
        if len(tasks) > 1:
            gains[tasks] = z[tasks][:, tasks].sum(0) / (len(tasks) - 1)
    return gains


def _checked(affinity: Tensor) -> NDArray[Any]:
    """The affinities with zeros on the diagonal."""
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or len(affinity) < 2:
        raise UserError(f"affinity: a matrix (T, T) of two tasks or more is needed, got {tuple(affinity.shape)}")
    z = affinity.detach().cpu().double().clone().fill_diagonal_(0)
    if not z.isfinite().all():
        i, j = (~z.isfinite()).nonzero()[0].tolist()
        raise UserError(
            f"affinity: that of task {i} onto task {j} is {z[i, j].item()}; two tasks that were never in a batch "
            "together have none: record more often, or leave a task out"
        )
    return z.numpy()


def _best(z: NDArray[Any], most: int) -> list[list[int]]:
    """The best partition. A set of tasks is a number, whose bit t stands for task t."""
    tasks = len(z)
    members = (np.arange(2**tasks)[:, None] >> np.arange(tasks)) & 1
    sizes = members.sum(1)
    gain = ((members @ z) * members).sum(1) / np.maximum(sizes - 1, 1)
    best = np.zeros((most + 1, 2**tasks))  # by number of groups at most, and the set that they divide
    best[0, 1:] = -np.inf
    first = np.zeros((most + 1, 2**tasks), np.int64)  # the group of the set's lowest task
    for whole_set in range(1, 2**tasks):
        lowest = whole_set & -whole_set
        inside = np.zeros(1, np.int64)  # all subsets of the rest
        for t in range(tasks):
            if (whole_set ^ lowest) >> t & 1:
                inside = np.concatenate([inside, inside | 1 << t])
        group = inside | lowest
        totals = gain[group] + best[:-1, whole_set ^ group]
        chosen = totals.argmax(1)
        best[1:, whole_set] = totals[np.arange(most), chosen]
        first[1:, whole_set] = group[chosen]
    found: list[list[int]] = []
    left = len(gain) - 1
    while left:
        group_of_lowest = int(first[most - len(found), left])
        found.append([t for t in range(tasks) if group_of_lowest >> t & 1])
        left ^= group_of_lowest
    return found


def _merged_and_moved(z: NDArray[Any], most: int) -> list[list[int]]:
    """A good partition of many tasks."""
    both = z + z.T
    found = [[t] for t in range(len(z))]

    def gain(group: list[int]) -> float:
        return float(both[np.ix_(group, group)].sum()) / 2 / max(len(group) - 1, 1)

    while len(found) > 1:
        within = np.array([both[np.ix_(g, g)].sum() / 2 for g in found])
        of_tasks = np.zeros((len(found), len(z)))
        for number, group in enumerate(found):
            of_tasks[number, group] = 1
        between = of_tasks @ both @ of_tasks.T
        sizes = of_tasks.sum(1)
        gains = within / np.maximum(sizes - 1, 1)
        added = (within + within[:, None] + between) / (sizes + sizes[:, None] - 1) - gains - gains[:, None]
        np.fill_diagonal(added, -np.inf)
        a, b = sorted(map(int, np.unravel_index(int(added.argmax()), added.shape)))
        if len(found) <= most and added[a, b] <= 0:
            break
        found[a] += found.pop(b)
    smallest = 1e-12 * float(np.abs(z).max())  # less is rounding, which could move a task to and fro
    while True:
        candidates = []
        places = [*range(len(found)), *([len(found)] if len(found) < most else [])]
        for source, group in enumerate(found):
            for task in group:
                rest = [t for t in group if t != task]
                lost = gain(group) - gain(rest)
                for target in places:
                    if target != source:
                        others = found[target] if target < len(found) else []
                        candidates.append((gain([*others, task]) - gain(others) - lost, -task, -target, source))
        if not candidates or max(candidates)[0] <= smallest:
            return found
        _, task, target, source = max(candidates)
        found[source].remove(-task)
        if -target == len(found):
            found.append([])
        found[-target].append(-task)
        found = [group for group in found if group]
