"""Episodes from a list of tasks, in place of random draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_meta.batches import Episode, Examples
from lightning_meta.data.episodes import Episodes, EpisodeShape
from lightning_meta.data.pool import Pool
from lightning_meta.data.task_list import ListedTasks


class ListedEpisodes(Episodes):
    """The tasks of a list, way-major like drawn ones.

    Batches are dense: if tasks differ in way, support size or number of queries, each task is a meta-batch.

    Args:
        origin: Pool of the examples.
        tasks: Tasks of the list.
        meta_batch_size: Number of tasks T of a meta-batch if all tasks have the same sizes.
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
        """Return the tasks `indices` of one meta-batch."""
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
        """Return the `(T, N)` classes for each label of the tasks `indices` of one meta-batch."""
        rows, supports = self._rows(torch.as_tensor(indices, dtype=torch.int64))
        support = rows[:, :supports]
        empty = torch.zeros(len(indices), int(self.tasks.ways[indices[0]]), dtype=torch.int64)
        return empty.scatter(1, self.tasks.labels[support], self.tasks.classes[support])

    def _rows(self, numbers: Tensor) -> tuple[Tensor, int]:
        """Return the `(T, M)` rows of tasks of the same sizes, and how many of the M are support examples."""
        first, end = self.tasks.starts[numbers], self.tasks.starts[numbers + 1]
        supports, ways = self.tasks.supports[numbers], self.tasks.ways[numbers]
        for sizes in (end - first, supports, ways):
            if (sizes != sizes[0]).any():
                raise ValueError("tasks of one meta-batch must have the same way, support size and number of queries")
        return first.unsqueeze(1) + torch.arange(int(end[0] - first[0])), int(supports[0])

    def _most_of_a_class(self) -> tuple[int, int]:
        """Return the maximum numbers of support examples and of queries per class of a task."""
        task_numbers = torch.arange(self.num_tasks).repeat_interleave(self.tasks.starts.diff())
        place = torch.arange(len(task_numbers)) - self.tasks.starts[task_numbers]
        groups = task_numbers * int(self.tasks.ways.max()) + self.tasks.labels
        support = place < self.tasks.supports[task_numbers]
        shots, queries = (int(torch.bincount(groups[part]).max()) for part in (support, ~support))
        return shots, queries
