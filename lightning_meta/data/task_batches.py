"""Batches of several tasks as map-style datasets: item b is batch b."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lightning_meta.batches import TaskBatch
from lightning_meta.data.task_set import TaskSet
from lightning_meta.functional.random_bits import choose, key, name_key

_SUBSET = 2  # part of the key of its draw
_AHEAD, _AHEAD_BYTES = 32, 2**20  # most batches, and bytes, that are gathered at once
LEAST_EVALUATED, MOST_EVALUATED = 512, 8192  # default inputs of a batch in evaluation
_EVALUATED_BYTES, _PREDICTIONS = 2**19, 2**16  # in such a batch: most bytes of inputs, and predictions of all tasks


class TaskBatches(Dataset[TaskBatch], ABC):
    """Batches of a `TaskSet` by number.

    Args:
        data: Examples of the split.
        batches: Length of the dataset; in training that of one epoch, where the numbers continue in the next epoch.
        rank: This rank, which determines its share of every batch.
        ranks: Number of ranks W.
    """

    def __init__(self, data: TaskSet, batches: int, rank: int = 0, ranks: int = 1) -> None:
        self.data, self.batches, self.rank, self.ranks = data, batches, rank, ranks
        self.at_once = 1
        self._ahead: dict[int, TaskBatch] = {}  # gathered and not yet returned
        self._next = -1

    @abstractmethod
    def ids(self, batch: int) -> dict[str, Tensor]:
        """Return the labelled examples of the batch of all ranks, by name of the task."""

    def ids_of(self, first: int, count: int) -> Tensor | None:
        """Return the labelled examples of up to `count` batches in a row, for `TaskSet.several`; None if it cannot.

        Only called if a subclass has set `at_once`, the number of batches to gather together. In small batches the
        calls of a gather take longer than its work.
        """
        return None

    def gather_several(self, examples: int) -> None:
        """Set `at_once` for batches of so many examples, if the ranks do not share them and the data allow it."""
        if self.ranks == 1 and self.data.can_gather_several:
            self.at_once = max(1, min(_AHEAD, _AHEAD_BYTES // (examples * self.data.example_bytes)))

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[TaskBatch]:
        """Iterate over one epoch; without this method, Python would index without end."""
        return map(self.__getitem__, range(self.batches))

    def __getitem__(self, batch: int) -> TaskBatch:
        """Return the share of this rank of a batch; a task may be empty in it."""
        in_turn, self._next = batch == self._next, batch + 1
        # A worker process gets only some of the batches.
        if self.at_once > 1 and in_turn and batch not in self._ahead and get_worker_info() is None:
            numbers = self.ids_of(batch, self.at_once)
            with torch.inference_mode(False):  # the others may be asked for in training
                self._ahead = {} if numbers is None else dict(enumerate(self.data.several(numbers), batch))
        ready = self._ahead.pop(batch, None)  # not kept, since whoever gets it may change it
        return self.single(batch) if ready is None else ready

    def single(self, batch: int) -> TaskBatch:
        """Gather the share of this rank of a batch."""
        ids = self.ids(batch)
        return self.data.batch(self.share(ids) if self.ranks > 1 else ids)

    def share(self, ids: dict[str, Tensor]) -> dict[str, Tensor]:
        """Select every W-th labelled example, counted over all tasks; shares then differ by at most one example."""
        taken, start = {}, 0
        for name, i in ids.items():
            taken[name] = i[(self.rank - start) % self.ranks :: self.ranks]
            start += len(i)
        return taken


def evaluated_at_once(inputs: Tensor, predictions: int) -> int:
    """Return how many inputs to evaluate at a time: 512, and more if they are short rows of a table.

    The calls of a small batch take longer than its work. Networks for images and texts need more memory for each input,
    and those that are conditioned on the task for each prediction.

    Args:
        inputs: Inputs, `(M, *input_shape)`.
        predictions: Number of predictions of all tasks for them, such as M T if every task has every input.

    >>> evaluated_at_once(torch.zeros(100, 16), 100), evaluated_at_once(torch.zeros(100, 3, 84, 84), 100)
    (8192, 512)
    """
    if inputs.dim() != 2 or not inputs.is_floating_point():
        return LEAST_EVALUATED
    fitting = _EVALUATED_BYTES // max(1, inputs[:1].nbytes)
    fitting = min(fitting, _PREDICTIONS * len(inputs) // max(1, predictions))
    return min(max(LEAST_EVALUATED, fitting), MOST_EVALUATED)


class AllExamples(TaskBatches):
    """Every labelled example of every task once, in order; for evaluation.

    Args:
        data: Examples of the split.
        batch_size: Number of inputs per batch.
    """

    def __init__(self, data: TaskSet, batch_size: int) -> None:
        labelled = {name: rows.cpu() for name, rows in data.rows.items()}
        self._ranges: list[tuple[str | None, int]] = []
        together: dict[str | None, Tensor] = {None: torch.cat(list(labelled.values()))}
        for name, rows in labelled.items() if isinstance(data.inputs, dict) else together.items():
            numbers = (rows // batch_size).unique()  # skip batches without labels
            self._ranges += [(name, number * batch_size) for number in numbers.tolist()]
        super().__init__(data, len(self._ranges))
        self.batch_size = batch_size
        self.meta_batch_size = 1  # `EvaluationSampler` distributes single batches
        starts = torch.tensor([start for _, start in self._ranges])
        bounds = torch.stack([starts, starts + batch_size])
        # First and last + 1 labelled example of each task in each batch, (batches, 2, T).
        self._bounds = torch.stack([torch.searchsorted(rows, bounds) for rows in labelled.values()]).permute(2, 1, 0)

    def ids(self, batch: int) -> dict[str, Tensor]:
        """Return the labelled examples of a batch, by name of the task."""
        only, _ = self._ranges[batch]
        bounds, names = self._bounds[batch], self.data.names
        present = (bounds[1] > bounds[0]).nonzero()[:, 0]
        # Tasks with the same range share one tensor, which `TaskSet.batch` recognises.
        ranges: dict[tuple[int, int], Tensor] = {}
        ids = {}
        for task, first, last in zip(present.tolist(), *bounds[:, present].tolist(), strict=True):
            if only in (None, names[task]):
                if (first, last) not in ranges:
                    ranges[first, last] = torch.arange(first, last)
                ids[names[task]] = ranges[first, last]
        return ids


def subset(data: TaskSet, count: int) -> TaskSet:
    """Return a fixed subset of at most `count` labelled examples of each task."""
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
