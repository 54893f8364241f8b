"""Episodes as a pure function of (seed, split, meta-batch, task): no state, no order, no rank.

Meta-batch b of a split has its way and shot drawn from (seed, split, b), and its t-th task from (seed, split, b, t).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_meta.batches import SPLITS, Episode, Examples, Split
from lightning_meta.checks import whole
from lightning_meta.data.class_shares import dirichlet_counts
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import TaskGenerator
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import choose, fold, integers, key

Range = int | tuple[int, int]

# What a draw is for. Streams with different purposes never meet.
_WAYS, _SHOTS, _CLASSES, _MEMBERS, _GENERATED, AUGMENTED, _SHARES = range(7)


class EpisodeShape(NamedTuple):
    """The sizes of an episode; ways and shots may be ranges, both ends included.

    Attributes:
        ways: N, classes in a task.
        shots: K, support examples of each class.
        queries: Q, query examples of each class; of a class on average, where there is a `dirichlet`.
        dirichlet: α of the Dirichlet that the shares of the classes in the query set are drawn from; None for Q of
            each. The N Q queries of a task may then be of one class.
    """

    ways: Range
    shots: Range
    queries: int
    dirichlet: float | None = None

    def largest(self) -> tuple[int, int]:
        """The largest N, and the most examples that a class may have in a task: K + Q, or K + N Q."""
        ways, shots = (r if isinstance(r, int) else r[1] for r in (self.ways, self.shots))
        return ways, shots + self.queries * (1 if self.dirichlet is None else ways)


class Draw(NamedTuple):
    """Which examples make up a meta-batch.

    Attributes:
        classes: `(T, N)` classes of the pool.
        support: `(T, N, K)` numbers of examples within their class.
        query: `(T, N, most)`, none of them in `support`; class n of task t has the first `counts[t, n]` of them.
        counts: `(T, N)` queries of each class; the sum over classes is the same for all tasks.
    """

    classes: Tensor
    support: Tensor
    query: Tensor
    counts: Tensor


class Episodes(Dataset[Episode], ABC):
    """A map-style dataset of tasks that are known by their number, and handed out a meta-batch at a time.

    Attributes:
        origin: Where examples come from.
        shape: Way, shot and queries.
        meta_batch_size: T, tasks of a meta-batch, which are alike in way and shot.
        num_tasks: The length.
    """

    origin: Pool | TaskGenerator
    shape: EpisodeShape
    meta_batch_size: int
    num_tasks: int

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Episode:
        """The tasks `indices` of one meta-batch."""

    @abstractmethod
    def classes(self, indices: Sequence[int]) -> Tensor:
        """`(T, N)` the class of the pool that each label of the tasks `indices` of one meta-batch stands for."""

    def __len__(self) -> int:
        return self.num_tasks

    def __iter__(self) -> Iterator[Episode]:
        """The tasks 0 to `len(self)` - 1, each a meta-batch of one; indexing alone would never end."""
        return map(self.__getitem__, range(self.num_tasks))

    def __getitem__(self, index: int) -> Episode:
        """The meta-batch of the one task `index` (T = 1)."""
        return self.__getitems__([index])


class EpisodeDataset(Episodes):
    """A map-style dataset whose item i is task `i % T` of meta-batch `i // T`.

    Args:
        origin: Where examples come from: a pool of stored ones, or a generator of tasks.
        split: Which split this is; part of every key.
        shape: Way, shot and queries.
        meta_batch_size: T, tasks that share a way and a shot.
        num_tasks: The length; items beyond it are as well defined as those before.
        seed: The seed of every draw.
    """

    def __init__(
        self,
        origin: Pool | TaskGenerator,
        split: Split,
        shape: EpisodeShape,
        meta_batch_size: int,
        num_tasks: int,
        seed: int,
    ) -> None:
        whole(1, meta_batch_size=meta_batch_size)
        whole(0, num_tasks=num_tasks)
        self.origin, self.split, self.shape = origin, split, shape
        self.meta_batch_size, self.num_tasks = meta_batch_size, num_tasks
        self._root = int(key(seed, SPLITS.index(split)))
        if isinstance(origin, Pool):
            check_pool(origin, split, shape)
            if origin.y is not None:
                self.shape = shape._replace(ways=1)  # an episode is of one task

    def __getitems__(self, indices: Sequence[int]) -> Episode:
        """The tasks `indices` of one meta-batch, drawn at once by tensor indexing."""
        numbers = torch.as_tensor(indices, dtype=torch.int64)
        ways, shots = self.sizes(self._meta_batch(indices))
        if isinstance(self.origin, TaskGenerator):
            support, query = self.origin.generate(key(self._root, _GENERATED, numbers), shots, self.shape.queries)
            return Episode(_dense(support), _dense(query), 0, numbers)
        draw = self.draw(indices)
        if self.origin.y is not None:
            return self._of_one_task(draw, numbers)
        if self.shape.dirichlet is not None:
            return self._unbalanced(draw, numbers)
        x = self.origin.gather(draw.classes, torch.cat([draw.support, draw.query], dim=-1))  # (T, N, K + Q, ...)
        # Labels are repeated, not expanded: pinned memory needs elements of its own.
        labels = torch.arange(ways, device=x.device).repeat(len(indices), 1)
        support, query = (
            Examples(part.flatten(1, 2), labels.repeat_interleave(part.shape[2], dim=1))
            for part in x.split([shots, self.shape.queries], dim=2)
        )
        return Episode(support, query, ways, numbers.to(x.device), draw.classes.to(x.device))

    def sizes(self, meta_batch: int) -> tuple[int, int]:
        """Way and shot of a meta-batch."""
        ways, shots = self.shape.ways, self.shape.shots
        if not isinstance(ways, int):
            ways = int(integers(key(self._root, _WAYS, meta_batch), *ways))
        if not isinstance(shots, int):
            shots = int(integers(key(self._root, _SHOTS, meta_batch), *shots))
        return ways, shots

    def classes(self, indices: Sequence[int]) -> Tensor:
        """`(T, N)` the class of the pool that each label of the tasks `indices` of one meta-batch stands for.

        In regression it is `(T, 1)`, the stored task that the rows of each episode are of.
        """
        return self.draw(indices).classes

    def draw(self, indices: Sequence[int]) -> Draw:
        """Which classes and examples the tasks `indices` of one meta-batch hold."""
        if not isinstance(self.origin, Pool):
            raise TypeError("only tasks over stored examples are drawn; a generator makes its examples")
        ways, shots = self.sizes(self._meta_batch(indices))
        pool = self.origin
        keys = key(key(self._root, torch.as_tensor(indices, dtype=torch.int64)))
        classes = choose(fold(keys, _CLASSES), ways, pool.num_classes)
        class_keys = fold(keys.unsqueeze(-1), _MEMBERS, torch.arange(ways))
        if self.shape.dirichlet is None:
            counts = torch.full_like(classes, self.shape.queries)
        else:
            shares = ways, ways * self.shape.queries, self.shape.dirichlet
            counts = dirichlet_counts(fold(keys, _SHARES), *shares)
        # The first members of a class do not depend on how many are drawn: nor does the support set on the shares.
        members = choose(class_keys, shots + int(counts.max()), pool.sizes[classes % len(pool.names)])
        return Draw(classes, members[..., :shots], members[..., shots:], counts)

    def _of_one_task(self, draw: Draw, numbers: Tensor) -> Episode:
        """The episode of a draw of rows of one stored regression task each."""
        assert isinstance(self.origin, Pool)
        members = torch.cat([draw.support, draw.query], dim=-1)  # (T, 1, K + Q)
        gathers = self.origin.gather, self.origin.gather_targets
        x, y = (gather(draw.classes, members).flatten(1, 2) for gather in gathers)
        shots = draw.support.shape[-1]
        support, query = Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])
        return Episode(_dense(support), _dense(query), 0, numbers.to(x.device))

    def _unbalanced(self, draw: Draw, numbers: Tensor) -> Episode:
        """The episode of a draw whose classes differ in their number of queries: as many in all in each task."""
        assert isinstance(self.origin, Pool)
        (tasks, ways), device = draw.classes.shape, self.origin.x.device
        support = self.origin.gather(draw.classes, draw.support).flatten(1, 2)
        drawn = torch.arange(draw.query.shape[-1]) < draw.counts.unsqueeze(-1)  # (T, N, most)
        labels = torch.arange(ways).view(1, -1, 1).expand_as(drawn)[drawn].view(tasks, -1)
        members = draw.query[drawn].view(tasks, -1, 1)
        query = self.origin.gather(draw.classes.gather(1, labels), members).squeeze(2)
        of_support = torch.arange(ways, device=device).repeat(tasks, 1).repeat_interleave(draw.support.shape[-1], dim=1)
        parts = Examples(support, of_support), Examples(query, labels.to(device))
        return Episode(*parts, ways, numbers.to(device), draw.classes.to(device))

    def _meta_batch(self, indices: Sequence[int]) -> int:
        """The number of the meta-batch that all of the tasks belong to."""
        first, *others = sorted({i // self.meta_batch_size for i in indices})
        if others:
            raise ValueError(f"one draw is one meta-batch, these tasks belong to {[first, *others]}")
        return first


def _dense(examples: Examples) -> Examples:
    """The examples of a generator in memory of their own, whatever views it made them by."""
    return Examples(examples.x.contiguous(), examples.y.contiguous())


def check_pool(
    pool: Pool,
    split: Split,
    shape: EpisodeShape,
    more_classes: Callable[[], str] = lambda: "by more data or another division",
) -> None:
    """Refuse a pool that cannot fill the episodes asked for.

    Args:
        pool: The examples.
        split: Whose they are.
        shape: What is drawn of them.
        more_classes: Says how a split with too few classes gets more.

    Raises:
        UserError: Too few classes, or a class with too few examples.
    """
    ways, examples = shape.largest()
    test = "" if split == "train" else "test_"
    if pool.y is not None:
        _check_rows(pool, split, examples, shape.queries)
        return
    if ways > pool.num_classes:
        raise UserError(
            f"{test}ways: {ways} classes a task were asked for, but the {split} split has {pool.num_classes}; "
            + (f"ask for at most {pool.num_classes}, or " if pool.num_classes > 1 else "")
            + f"give the {split} split {ways} classes or more, {more_classes()}"
        )
    smallest = int(pool.sizes.min())
    if examples > smallest:
        name = pool.names[int(pool.sizes.argmin())]
        if shape.dirichlet is not None:
            raise UserError(
                f"{test}dirichlet: all {ways * shape.queries} queries of a task may be of one class, which needs "
                f"{examples} examples with the support set, but class {name!r} of the {split} split has {smallest}; "
                f"ask for fewer {test}queries or {test}shots, or leave {test}dirichlet out"
            )
        queries = max(1, min(shape.queries, smallest // 2))
        fewer = f"fewer, such as {smallest - queries} + {queries}," if smallest > 1 else "fewer"
        raise UserError(
            f"{test}shots + {test}queries: {examples - shape.queries} + {shape.queries} = {examples} examples a class "
            f"were asked for, but class {name!r} of the {split} split has {smallest}; "
            f"ask for {fewer} or drop the class"
        )


def _check_rows(pool: Pool, split: Split, rows: int, queries: int) -> None:
    """Refuse regression tasks that have fewer rows than an episode."""
    test = "" if split == "train" else "test_"
    if not pool.names:
        raise UserError(f"source: the {split} split has no task; give it one at least")
    smallest = int(pool.sizes.min())
    if rows > smallest:
        few = int((pool.sizes < rows).sum())
        raise UserError(
            f"{test}shots + {test}queries: {rows - queries} + {queries} = {rows} rows a task were asked for, but task "
            f"{pool.names[int(pool.sizes.argmin())]!r} of the {split} split has {smallest} ({few} of {len(pool.names)} "
            "tasks have too few); ask for fewer, or leave such tasks out by least_rows"
        )
