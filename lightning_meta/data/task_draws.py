"""Training batches of several tasks, drawn without state: what a batch holds is a function of (seed, number)."""

from __future__ import annotations

from math import ceil, exp

import torch
from torch import Tensor

from lightning_meta.batches import TaskBatch
from lightning_meta.data.task_batches import TaskBatches
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import choose, key, name_key, uniform

# What a draw is for; part of its key.
_WHICH_TASKS, _ORDER = range(2)


class DrawnTasks(TaskBatches):
    r"""A mini-batch of tasks, then a mini-batch of each task's data.

    Tasks are drawn one after the other without replacement, task i with a probability in proportion to $n_i^\alpha$.
    Within an epoch a task's examples come in random order, each once before any comes again.

    Args:
        data: The training split.
        seed: Of every draw.
        batch_size: Examples of a drawn task; all of them where it has fewer.
        tasks_per_batch: How many tasks are drawn; all by default.
        exponent: α: 0 draws uniformly, 1 in proportion to a task's size.
        batches: Batches of an epoch; by default as many as visit, in expectation, as many examples as there are.
        rank: Which share of every batch is taken.
        ranks: Into how many it is divided.
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

    def ids(self, batch: int) -> dict[str, Tensor]:
        """The labelled examples of a whole batch, by name of the tasks in it."""
        epoch, number = divmod(batch, self.batches)
        before, after = self._schedule(epoch)[number : number + 2].tolist()
        found = {}
        for (name, size), seen, drawn in zip(self.sizes.items(), before, after, strict=True):
            if drawn > seen:
                n = len(self.data.rows[name])
                found[name] = self._orders.take(self._keys[name], epoch, seen * size, size, n)
        return found

    def _schedule(self, epoch: int) -> Tensor:
        """How often each task has been drawn before each batch of an epoch, and after the last: `(batches + 1, T)`."""
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

    The inputs of an epoch come in random order, each once; the last batch may be smaller.

    Args:
        data: The training split; its inputs lie in one tensor.
        seed: Of every draw.
        batch_size: Inputs in a batch.
        batches: Batches of an epoch; by default as many as visit every input once.
        rank: Which share of every batch is taken.
        ranks: Into how many it is divided.
    """

    def __init__(
        self, data: TaskSet, seed: int, batch_size: int, batches: int | None = None, rank: int = 0, ranks: int = 1
    ) -> None:
        assert isinstance(data.inputs, Tensor)
        labelled = torch.stack([p >= 0 for p in data.positions.values()]).any(0)
        self._rows = labelled.nonzero()[:, 0]
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

    def ids(self, batch: int) -> dict[str, Tensor]:
        """The labelled examples of a whole batch, by name of the tasks in it."""
        return {name: found[found >= 0] for name, found in self._found(batch).items() if (found >= 0).any()}

    def __getitem__(self, batch: int) -> TaskBatch:
        """This rank's share: every W-th input, with all its targets."""
        found = self._found(batch)
        ids = {}
        for name, positions in found.items():
            if (positions >= 0).any():
                mine = positions[self.rank :: self.ranks]
                ids[name] = mine[mine >= 0]
        return self.data.batch(ids)

    def _found(self, batch: int) -> dict[str, Tensor]:
        epoch, number = divmod(batch, self.batches)
        n, start = len(self._rows), number * self.batch_size
        size = min(self.batch_size, n - start) if self._whole_epochs else self.batch_size
        rows = self._rows[self._orders.take(0, epoch, start, size, n)]
        return {name: positions[rows] for name, positions in self.data.positions.items()}


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


class _Orders:
    """Endless random orders of n things: each once before any comes again."""

    def __init__(self, root: Tensor) -> None:
        self._root = root
        self._kept: dict[int, tuple[tuple[int, int, int], Tensor]] = {}

    def take(self, name: int, epoch: int, start: int, count: int, n: int) -> Tensor:
        """The things at `start` to `start + count - 1` of an epoch's order: `(count,)` in [0, n)."""
        parts = []
        while count:
            turn, first = divmod(start, n)
            part = self._order(name, epoch, turn, n)[first : first + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)

    def _order(self, name: int, epoch: int, turn: int, n: int) -> Tensor:
        which = (epoch, turn, n)
        if name not in self._kept or self._kept[name][0] != which:
            self._kept[name] = (which, choose(key(self._root, _ORDER, name, epoch, turn), n, n))
        return self._kept[name][1]
