"""Groups of tasks to train together, from the affinities between tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.checks import whole
from lightning_meta.errors import UserError

EXACT = 14  # largest number of tasks for the exact search, which visits 3^13 = 1.6 million pairs of set and subset


class TaskGroups(NamedTuple):
    """A partition of tasks.

    Attributes:
        groups: Numbers of the tasks in each group, in ascending order; groups are ordered by their first tasks.
        gain: Total predicted gain, the sum of `group_gains`.
        exact: Whether the gain is certain to be the largest; otherwise it is the result of a greedy search.
    """

    groups: tuple[tuple[int, ...], ...]
    gain: float
    exact: bool


def task_groups(affinity: Tensor, groups: int) -> TaskGroups:
    r"""Divide tasks into at most k groups with the largest total predicted gain.

    The predicted gain of a task is the mean affinity of the other tasks in its group onto it, and 0 if it is alone:
    $\sum_{G} \sum_{j \in G} \frac{1}{|G| - 1} \sum_{i \in G, i \ne j} Z_{i \to j}$.

    For up to 14 tasks, dynamic programming over sets of tasks finds the best partition. For more tasks, a greedy search
    starts from single tasks and repeatedly merges the two groups whose union adds the most; then it repeatedly moves
    the task whose move adds the most to another group, until no move increases the gain.

    Z and the mean over the other tasks of a group are from Fifty et al., Efficiently Identifying Task Groupings for
    Multi-Task Learning (NeurIPS 2021). Their search may train a task in several groups and use it from one of them.
    Here a task is in one group, so that all groups together see as many examples as one network for all tasks.

    >>> affinity = torch.tensor([[1.0, 0.3, -0.1], [0.2, 1.0, -0.2], [-0.1, 0.1, 1.0]])
    >>> task_groups(affinity, groups=2).groups
    ((0, 1), (2,))

    Args:
        affinity: Affinities $Z_{i \to j}$, `(T, T)`, with one row for each task i that makes a step, as returned by
            `inter_task_affinity` and `recorded_affinity`; the diagonal is ignored.
        groups: Largest number k of groups, >= 1.

    Raises:
        UserError: The affinity is not a finite square matrix of at least two tasks, or `groups` is below 1.
    """
    whole(1, groups=groups)
    z = _checked(affinity)
    found = _best(z, min(groups, len(z))) if len(z) <= EXACT else _merged_and_moved(z, groups)
    ordered = tuple(sorted(tuple(sorted(group)) for group in found))
    return TaskGroups(ordered, float(group_gains(affinity, ordered).sum()), len(z) <= EXACT)


def group_gains(affinity: Tensor, groups: Sequence[Iterable[int]]) -> Tensor:
    """Compute the predicted gain of each task in its group.

    Args:
        affinity: Affinities `(T, T)` as for `task_groups`.
        groups: Numbers of the tasks in each group.

    Returns:
        Gains `(T,)` in float64; 0 for a task that is alone or in no group.
    """
    z = torch.from_numpy(_checked(affinity))
    gains = torch.zeros(len(z), dtype=torch.float64)
    for group in groups:
        tasks = list(group)
        if len(tasks) > 1:
            gains[tasks] = z[tasks][:, tasks].sum(0) / (len(tasks) - 1)
    return gains


def _checked(affinity: Tensor) -> NDArray[Any]:
    """Return the affinities with zeros on the diagonal."""
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or len(affinity) < 2:
        raise UserError(f"affinity: a matrix (T, T) of two tasks or more is needed, got {tuple(affinity.shape)}")
    z = affinity.detach().cpu().double().clone().fill_diagonal_(0)
    if not z.isfinite().all():
        i, j = (~z.isfinite()).nonzero()[0].tolist()
        raise UserError(
            f"affinity: that of task {i} onto task {j} is {z[i, j].item()}; two tasks that were never in the same "
            "batch have none: record more often, or leave a task out"
        )
    return z.numpy()


def _best(z: NDArray[Any], most: int) -> list[list[int]]:
    """Find the best partition. A set of tasks is represented by an integer whose bit t is 1 if task t is in it."""
    tasks = len(z)
    members = (np.arange(2**tasks)[:, None] >> np.arange(tasks)) & 1
    sizes = members.sum(1)
    gain = ((members @ z) * members).sum(1) / np.maximum(sizes - 1, 1)
    best = np.zeros((most + 1, 2**tasks))  # by the largest number of groups and the set to divide
    best[0, 1:] = -np.inf
    first = np.zeros((most + 1, 2**tasks), np.int64)  # the group that contains the lowest task of the set
    for whole_set in range(1, 2**tasks):
        lowest = whole_set & -whole_set
        inside = np.zeros(1, np.int64)  # all subsets of the other tasks
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
    """Find a good partition of many tasks by the greedy search of `task_groups`."""
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
    smallest = 1e-12 * float(
        np.abs(z).max()
    )  # smaller gains are rounding errors, which could move a task back and forth for ever
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
