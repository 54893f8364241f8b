"""Episodes that a list names instead of a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_meta.batches import Episode, Examples
from lightning_meta.data.episodes import Episodes, EpisodeShape
from lightning_meta.data.pool import Pool
from lightning_meta.data.task_list import ListedTasks


class ListedEpisodes(Episodes):
    """The tasks of a list, each as its rows say, way-major like drawn ones.

    Batches are dense: where the tasks differ in way, support size or number of queries, each is a meta-batch by itself.

    Args:
        origin: The pool that the examples lie in.
        tasks: The tasks.
        meta_batch_size: T, tasks that are evaluated at once where all are alike.
    """

    origin: Pool

    def __init__(self, origin: Pool, tasks: ListedTasks, meta_batch_size: int) -> None:
        self.origin, self.tasks, self.num_tasks = origin, tasks, len(tasks.ways)
        sizes = torch.stack([tasks.ways, tasks.supports, tasks.starts.diff()])
        alike = bool((sizes == sizes[:, :1]).all())
        self.meta_batch_size = meta_batch_size if alike else 1
        ways, shots, queries = int(tasks.ways.max()), *self._most_of_a_class()
        self.shape = EpisodeShape(ways if alike else (int(tasks.ways.min()), ways), shots, queries)

    def __getitems__(self, indices: Sequence[int]) -> Episode:
        """The tasks `indices` of one meta-batch."""
        numbers = torch.as_tensor(indices, dtype=torch.int64)
        rows, supports = self._rows(numbers)
        device = self.origin.x.device
        parts = []
        for part in (rows[:, :supports], rows[:, supports:]):
            x = self.origin.gather(self.tasks.classes[part], self.tasks.members[part].unsqueeze(-1))
            parts.append(Examples(x.squeeze(2), self.tasks.labels[part].to(device)))
        ways = int(self.tasks.ways[indices[0]])
        return Episode(parts[0], parts[1], ways, numbers.to(device), self.classes(indices).to(device))

    def classes(self, indices: Sequence[int]) -> Tensor:
        """`(T, N)` the class that each label of the tasks `indices` of one meta-batch stands for."""
        rows, supports = self._rows(torch.as_tensor(indices, dtype=torch.int64))
        support = rows[:, :supports]
        empty = torch.zeros(len(indices), int(self.tasks.ways[indices[0]]), dtype=torch.int64)
        return empty.scatter(1, self.tasks.labels[support], self.tasks.classes[support])

    def _rows(self, numbers: Tensor) -> tuple[Tensor, int]:
        """`(T, M)` the rows of tasks that are alike, and how many of the M are support examples."""
        first, end = self.tasks.starts[numbers], self.tasks.starts[numbers + 1]
        supports, ways = self.tasks.supports[numbers], self.tasks.ways[numbers]
        for sizes in (end - first, supports, ways):
            if (sizes != sizes[0]).any():
                raise ValueError("tasks of one meta-batch are alike in way, support size and number of queries")
        return first.unsqueeze(1) + torch.arange(int(end[0] - first[0])), int(supports[0])

    def _most_of_a_class(self) -> tuple[int, int]:
        """The most support examples that a class of a task has, and the most queries."""
        of_task = torch.arange(self.num_tasks).repeat_interleave(self.tasks.starts.diff())
        place = torch.arange(len(of_task)) - self.tasks.starts[of_task]
        at = of_task * int(self.tasks.ways.max()) + self.tasks.labels
        support = place < self.tasks.supports[of_task]
        shots, queries = (int(torch.bincount(at[part]).max()) for part in (support, ~support))
        return shots, queries
