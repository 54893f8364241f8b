"""Batches of several tasks, as map-style datasets: item b is batch number b."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_meta.batches import TaskBatch
from lightning_meta.data.task_set import TaskSet
from lightning_meta.functional.random_bits import choose, key, name_key

_SUBSET = 2  # part of the key of its draw


class TaskBatches(Dataset[TaskBatch], ABC):
    """Batches of a `TaskSet` by number.

    Args:
        data: The split.
        batches: The length: for training one epoch, whose numbers are followed by those of the next.
        rank: Which share of every batch is taken.
        ranks: Into how many it is divided.
    """

    def __init__(self, data: TaskSet, batches: int, rank: int = 0, ranks: int = 1) -> None:
        self.data, self.batches, self.rank, self.ranks = data, batches, rank, ranks

    @abstractmethod
    def ids(self, batch: int) -> dict[str, Tensor]:
        """The labelled examples of a whole batch, by name of the tasks in it."""

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[TaskBatch]:
        """The batches 0 to `len(self)` - 1; indexing alone would never end."""
        return map(self.__getitem__, range(self.batches))

    def __getitem__(self, batch: int) -> TaskBatch:
        """This rank's share of a batch; a task may have an empty one."""
        return self.__getitems__([batch])

    def __getitems__(self, batches: Sequence[int]) -> TaskBatch:
        """This rank's share of the one batch that is named, drawn at once by tensor indexing."""
        (batch,) = batches
        ids = self.ids(batch)
        return self.data.batch(self.share(ids) if self.ranks > 1 else ids)

    def share(self, ids: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every W-th labelled example of the whole, so that ranks have equally many to within one."""
        taken, start = {}, 0
        for name, i in ids.items():
            taken[name] = i[(self.rank - start) % self.ranks :: self.ranks]
            start += len(i)
        return taken


class AllExamples(TaskBatches):
    """Every labelled example of every task once, in order; for evaluation.

    Args:
        data: The split.
        batch_size: Inputs in a batch.
    """

    def __init__(self, data: TaskSet, batch_size: int) -> None:
        labelled = {name: rows.cpu() for name, rows in data.rows.items()}
        self._ranges: list[tuple[str | None, int]] = []
        together: dict[str | None, Tensor] = {None: torch.cat(list(labelled.values()))}
        for name, rows in labelled.items() if isinstance(data.inputs, dict) else together.items():
            numbers = (rows // batch_size).unique()  # a batch without any label has nothing to evaluate
            self._ranges += [(name, number * batch_size) for number in numbers.tolist()]
        super().__init__(data, len(self._ranges))
        self.batch_size = batch_size
        self.meta_batch_size = 1  # one batch a draw, for the sampler
        starts = torch.tensor([start for _, start in self._ranges])
        bounds = torch.stack([starts, starts + batch_size])
        # Which examples of each task are in each batch, (batches, 2, T).
        self._bounds = torch.stack([torch.searchsorted(rows, bounds) for rows in labelled.values()]).permute(2, 1, 0)

    def ids(self, batch: int) -> dict[str, Tensor]:
        """The labelled examples of a batch, by name of the tasks in it."""
        only, _ = self._ranges[batch]
        bounds, names = self._bounds[batch], self.data.names
        present = (bounds[1] > bounds[0]).nonzero()[:, 0]
        # Tasks with labels for the same inputs share the numbers, see `TaskSet.batch`.
        ranges: dict[tuple[int, int], Tensor] = {}
        found = {}
        for task, first, last in zip(present.tolist(), *bounds[:, present].tolist(), strict=True):
            if only in (None, names[task]):
                if (first, last) not in ranges:
                    ranges[first, last] = torch.arange(first, last)
                found[names[task]] = ranges[first, last]
        return found


def subset(data: TaskSet, count: int) -> TaskSet:
    """A fixed subset of at most `count` labelled examples of each task, for measuring what training reached."""
    ids = {}
    for name, n in data.counts.items():
        ids[name] = choose(key(_SUBSET, name_key(name)), min(count, n), n).sort().values
    batch = data.batch(ids)
    if isinstance(batch.inputs, dict):
        return TaskSet(batch.inputs, batch.targets, batch.rows, batch.weights)
    orders = {name: rows.argsort() for name, rows in batch.rows.items()}
    targets = {name: batch.targets[name][order] for name, order in orders.items()}
    weights = None if batch.weights is None else {name: batch.weights[name][order] for name, order in orders.items()}
    return TaskSet(batch.inputs, targets, {name: batch.rows[name][order] for name, order in orders.items()}, weights)
