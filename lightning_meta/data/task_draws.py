"""Training batches of several tasks, drawn without state: a batch is a pure function of (seed, number)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp

import torch
from torch import Tensor

from lightning_meta.batches import TaskBatch
from lightning_meta.data.task_batches import TaskBatches
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import choose, fold, key, name_key, uniform

# Purposes of draws, part of their keys.
_WHICH_TASKS, _ORDER = range(2)
_FEW = 4  # keys that take longer in small arrays than one by one
_AT_ONCE = 1_000_000  # random numbers per draw, to bound the memory


class DrawnTasks(TaskBatches):
    r"""A mini-batch of tasks, then a mini-batch of each task's data.

    Tasks are drawn without replacement, with probabilities proportional to $n_i^\alpha$ at each draw. The examples of a
    task are in random order within an epoch; none repeats before all were used.

    Args:
        data: Examples of the training split.
        seed: Seed of all draws.
        batch_size: Number of examples per drawn task; all examples of a smaller task.
        tasks_per_batch: Number of tasks per batch; by default all.
        exponent: α; 0 draws uniformly, 1 in proportion to the size of a task.
        batches: Number of batches per epoch; by default an epoch has, in expectation, as many examples as the split.
        rank: This rank, which determines its share of every batch.
        ranks: Number of ranks.
    """

    def __init__(
        self,
        data: TaskSet,
        seed: int,
        batch_size: int,
        tasks_per_batch: int | None = None,
        exponent: float = 0.0,
        batches: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        names, counts = data.names, list(data.counts.values())
        self.tasks_per_batch = len(names) if tasks_per_batch is None else tasks_per_batch
        if not 1 <= self.tasks_per_batch <= len(names):
            raise UserError(f"tasks_per_batch: 1 to {len(names)} tasks can be drawn, got {self.tasks_per_batch}")
        self.sizes = dict(zip(names, (min(n, batch_size) for n in counts), strict=True))
        smallest = sum(sorted(self.sizes.values())[: self.tasks_per_batch])
        if smallest < ranks:
            raise UserError(f"batch_size: a batch may hold {smallest} examples, fewer than the {ranks} ranks; raise it")
        self._counts = counts
        self._weights = torch.tensor(counts, dtype=torch.float64) ** exponent
        self._keys = {name: name_key(name) for name in names}
        self._root = key(seed)
        if batches is None:
            chances = _chances(self._weights, self.tasks_per_batch)
            drawn = float((chances * torch.tensor(list(self.sizes.values()))).sum())
            batches = max(1, ceil(sum(counts) / drawn - 1e-9))
        super().__init__(data, batches, rank, ranks)
        self._schedules: dict[int, Tensor] = {}
        self._orders = _Orders(self._root)
        if self.tasks_per_batch == len(names) and len(set(self.sizes.values())) == 1 and not data.overlapping:
            self.gather_several(sum(self.sizes.values()))
            # Each epoch has an order of all rows, however few of its batches are asked for.
            self.at_once = min(self.at_once, self.batches * max(1, _AT_ONCE // sum(counts)))

    def ids(self, batch: int) -> dict[str, Tensor]:
        """Return the labelled examples of the batch of all ranks, by name of the task."""
        epoch, number = divmod(batch, self.batches)
        columns = (self.sizes, self.sizes.values(), self._counts, *self._drawn_before(epoch, number))
        wanted = {
            name: (self._keys[name], epoch, seen * size, size, n)
            for name, size, n, seen, then in zip(*columns, strict=True)
            if then > seen
        }
        return dict(zip(wanted, self._orders.take_all(list(wanted.values())), strict=True))

    def ids_of(self, first: int, count: int) -> Tensor:
        """Return the labelled examples of several batches, `(count, T, n)`."""
        size, tasks = next(iter(self.sizes.values())), list(zip(self._keys.values(), self._counts, strict=True))
        parts = _by_epoch(first, count, self.batches)
        orders = self._orders.take_all(
            [(name, epoch, number * size, many * size, n) for epoch, number, many in parts for name, n in tasks]
        )
        ids = [torch.stack(orders[i : i + len(tasks)]) for i in range(0, len(orders), len(tasks))]  # of each epoch
        return torch.cat(ids, dim=1).view(len(tasks), count, size).transpose(0, 1)

    def _drawn_before(self, epoch: int, number: int) -> list[list[int]]:
        """Return how often each task has been drawn in the epoch before a batch, and including it."""
        if self.tasks_per_batch == len(self.sizes):
            return [[number] * len(self.sizes), [number + 1] * len(self.sizes)]
        pair: list[list[int]] = self._schedule(epoch)[number : number + 2].tolist()
        return pair

    def _schedule(self, epoch: int) -> Tensor:
        """Return how often each task was drawn before each batch of an epoch and after the last, `(batches + 1, T)`."""
        if epoch not in self._schedules:
            numbers = torch.arange(epoch * self.batches, (epoch + 1) * self.batches).unsqueeze(-1)
            names = torch.tensor(list(self._keys.values()))
            draws = uniform(key(self._root, _WHICH_TASKS, numbers, names), 1)[..., 0]
            # Efraimidis and Spirakis 2006: the k largest of u^(1/w) are a weighted sample without replacement.
            order = (draws.clamp_min(2.0**-54).log() / self._weights).topk(self.tasks_per_batch).indices
            drawn = torch.zeros(len(draws) + 1, len(names), dtype=torch.int64)
            drawn[1:].scatter_(1, order, 1)
            self._schedules = {epoch: drawn.cumsum(0)}
        return self._schedules[epoch]


class DrawnInputs(TaskBatches):
    """A mini-batch of inputs, with the targets of every task that has one for them.

    Inputs are in random order, each once per epoch; the last batch may be smaller.

    Args:
        data: Examples of the training split, with inputs in one tensor.
        seed: Seed of all draws.
        batch_size: Number of inputs per batch.
        batches: Number of batches per epoch; by default that of one pass over the inputs.
        rank: This rank, which determines its share of every batch.
        ranks: Number of ranks.
    """

    def __init__(
        self, data: TaskSet, seed: int, batch_size: int, batches: int | None = None, rank: int = 0, ranks: int = 1
    ) -> None:
        assert isinstance(data.inputs, Tensor)
        self._rows = torch.cat([rows.cpu() for rows in data.rows.values()]).unique()
        self._whole_epochs = batches is None
        n = len(self._rows)
        smallest = (n % batch_size if self._whole_epochs else 0) or batch_size
        if smallest < ranks:
            raise UserError(
                f"batch_size: {batch_size} of {n} inputs make a batch of {smallest}, fewer than the {ranks} ranks; "
                "take another, or set batches_per_epoch"
            )
        super().__init__(data, ceil(n / batch_size) if batches is None else batches, rank, ranks)
        self.batch_size = batch_size
        self._orders = _Orders(key(seed))
        if data.aligned:
            self.gather_several(batch_size * len(data.names))

    def ids(self, batch: int) -> dict[str, Tensor]:
        """Return the labelled examples of the batch of all ranks, by name of the task."""
        return self._labelled(self._order(batch), 0, 1)

    def single(self, batch: int) -> TaskBatch:
        """Gather the share of this rank of a batch: every W-th input, with all its targets."""
        return self.data.batch(self._labelled(self._order(batch), self.rank, self.ranks))

    def ids_of(self, first: int, count: int) -> Tensor | None:
        """Return the labelled examples of several whole batches, `(count, n)`; None if the first is not whole."""
        n, size = len(self._rows), self.batch_size
        if not self._whole_epochs or n % size:
            # Up to the end of a turn: its last batch may be smaller, and one of two turns may have an input twice.
            count = min(count, self.batches - first % self.batches, (n - first % self.batches * size % n) // size)
        if not count:
            return None
        epochs = _by_epoch(first, count, self.batches)
        parts = [(0, epoch, number * size, batches * size, n) for epoch, number, batches in epochs]
        return torch.cat(self._orders.take_all(parts)).view(count, size).sort().values

    def _labelled(self, order: Tensor, rank: int, ranks: int) -> dict[str, Tensor]:
        """Return the examples of a rank for every task of the whole batch; a task may be empty on the rank."""
        if self.data.aligned:
            return dict.fromkeys(self.data.rows, order[rank::ranks] if ranks > 1 else order)
        positions = self.data.position_table[:, self._rows[order]]
        present = (positions >= 0).any(1).tolist()
        mine = positions[:, rank::ranks]
        labelled = mine >= 0
        parts = mine[labelled].split(labelled.sum(1).tolist())
        return {name: ids for name, ids, here in zip(self.data.names, parts, present, strict=True) if here}

    def _order(self, batch: int) -> Tensor:
        """Return the inputs of a batch as positions among the labelled inputs."""
        epoch, number = divmod(batch, self.batches)
        n, start = len(self._rows), number * self.batch_size
        size = min(self.batch_size, n - start) if self._whole_epochs else self.batch_size
        return self._orders.take(0, epoch, start, size, n)


def _chances(weights: Tensor, count: int) -> Tensor:
    r"""The chance of each of T tasks to be among those drawn, $1 - e^{-w_i t}$ with t such that they add up to `count`.

    Exact for equal weights, and for others in the limit of many tasks (Rosén 1972: tasks are drawn in the order of
    exponential clocks with the rates w_i).
    """
    if count == len(weights):
        return torch.ones_like(weights)
    rates = weights / weights.sum()
    low, high = -700.0, 700.0  # of log t
    for _ in range(100):
        middle = (low + high) / 2
        chances = -torch.expm1(-rates * exp(middle))
        low, high = (middle, high) if chances.sum() < count else (low, middle)
    return chances


def _by_epoch(first: int, count: int, batches: int) -> list[tuple[int, int, int]]:
    """Return how many of `count` batches are in each epoch: its number, the first batch in it, and how many follow."""
    parts = []
    while count:
        epoch, number = divmod(first, batches)
        of_epoch = min(count, batches - number)
        parts.append((epoch, number, of_epoch))
        first, count = first + of_epoch, count - of_epoch
    return parts


class _Orders:
    """Endless random sequences of n items: no item repeats before all were used."""

    def __init__(self, root: Tensor) -> None:
        self._root = key(root, _ORDER)
        self._kept: dict[int, dict[tuple[int, int, int], Tensor]] = {}  # orders in use, by name

    def take(self, name: int, epoch: int, start: int, count: int, n: int) -> Tensor:
        """Return the items from `start` to `start + count - 1` of the sequence of an epoch: `(count,)` in [0, n)."""
        return self.take_all([(name, epoch, start, count, n)])[0]

    def take_all(self, wanted: Sequence[tuple[int, int, int, int, int]]) -> list[Tensor]:
        """Like `take`, for several names and epochs at once.

        Args:
            wanted: `name`, `epoch`, `start`, `count` and `n` of each.
        """
        used: dict[int, set[tuple[int, int, int]]] = {}  # epochs, turns and lengths of the orders by name
        for name, epoch, start, count, n in wanted:
            turns = range(start // n, (start + max(count, 1) - 1) // n + 1)
            used.setdefault(name, set()).update((epoch, turn, n) for turn in turns)
        missing: dict[int, list[tuple[int, int, int]]] = {}  # orders of one length are drawn together
        for name, orders in used.items():
            kept = self._kept.setdefault(name, {})
            if orders <= kept.keys():
                continue
            for old in kept.keys() - orders:
                del kept[old]
            for epoch, turn, n in sorted(orders - kept.keys()):
                missing.setdefault(n, []).append((name, epoch, turn))
        for n, of_length in missing.items():
            most = max(1, _AT_ONCE // n)
            for first in range(0, len(of_length), most):
                self._draw(n, of_length[first : first + most])
        return [self._taken(*of_name) for of_name in wanted]

    def _draw(self, n: int, which: Sequence[tuple[int, int, int]]) -> None:
        if len(which) <= _FEW:
            keys = torch.stack([fold(self._root, *words) for words in which])
        else:
            keys = fold(self._root, *torch.tensor(which).unbind(1))
        orders = choose(keys, n, n)
        for (name, epoch, turn), order in zip(which, orders, strict=True):
            # Copied, because a view would keep the whole joint tensor in memory.
            self._kept[name][epoch, turn, n] = order.clone() if len(which) > 1 else order

    def _taken(self, name: int, epoch: int, start: int, count: int, n: int) -> Tensor:
        kept, (turn, first) = self._kept[name], divmod(start, n)
        if first + count <= n:
            return kept[epoch, turn, n].narrow(0, first, count)
        parts = []
        while count:
            part = kept[epoch, turn, n][first : first + count]
            parts.append(part)
            turn, first, count = turn + 1, 0, count - len(part)
        return torch.cat(parts)
