"""Episodes as a pure function of (seed, split, meta-batch, task): no state, no order, no rank.

Meta-batch b of a split has its way and shot drawn from (seed, split, b), and its t-th task from (seed, split, b, t).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

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
SmallClasses = Literal["refuse", "skip", "cap"]

# What a draw is for. Streams with different purposes never meet.
_WAYS, _SHOTS, _CLASSES, _MEMBERS, _GENERATED, AUGMENTED, _SHARES, _SUPPORT_SHARES = range(8)


class EpisodeShape(NamedTuple):
    """The sizes of an episode; ways and shots may be ranges, both ends included.

    Attributes:
        ways: N, classes in a task.
        shots: K, support examples of each class.
        queries: Q, query examples of each class; of a class on average, where there is a `dirichlet`.
        dirichlet: α of the Dirichlet that the shares of the classes in the query set are drawn from; None for Q of
            each. The N Q queries of a task may then be of one class.
        support_dirichlet: The same of the N K examples of the support set, at least one of each class; None for K of
            each.
        small_classes: What becomes of classes with too few examples: they are an error (`refuse`), are never drawn
            (`skip`), or have fewer queries, in whose place other classes of the task have more (`cap`).
    """

    ways: Range
    shots: Range
    queries: int
    dirichlet: float | None = None
    support_dirichlet: float | None = None
    small_classes: SmallClasses = "refuse"

    def largest(self) -> tuple[int, int]:
        """The largest N, and the most examples that a class may have in a task: K + Q, where classes are balanced."""
        ways, shots = (r if isinstance(r, int) else r[1] for r in (self.ways, self.shots))
        queries = self.queries * (1 if self.dirichlet is None else ways)
        return ways, self.most_support(ways, shots) + queries

    def most_support(self, ways: int, shots: int) -> int:
        """The most support examples that a class may have in a task of N ways and K shots."""
        return shots if self.support_dirichlet is None else ways * (shots - 1) + 1

    def needed(self) -> int:
        """How many examples a class must have to be drawn."""
        ways, shots = (r if isinstance(r, int) else r[1] for r in (self.ways, self.shots))
        return self.most_support(ways, shots) + 1 if self.small_classes == "cap" else self.largest()[1]

    @property
    def balanced(self) -> bool:
        """Whether every class has K support examples and Q queries."""
        return self.dirichlet is None and self.support_dirichlet is None and self.small_classes != "cap"


class Draw(NamedTuple):
    """Which examples make up a meta-batch.

    Attributes:
        classes: `(T, N)` classes of the pool.
        support: `(T, N, K)` numbers of examples within their class; of class n of task t the first
            `support_counts[t, n]`.
        query: `(T, N, most)`, none of them in `support`; of class n of task t the first `counts[t, n]`.
        counts: `(T, N)` queries of each class; the sum over classes is the same for all tasks.
        support_counts: `(T, N)` support examples of each class; the sum is the same for all tasks.
    """

    classes: Tensor
    support: Tensor
    query: Tensor
    counts: Tensor
    support_counts: Tensor


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
            self._eligible = large_enough(origin, shape)
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
        if not self.shape.balanced:
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
        classes = self._eligible[choose(fold(keys, _CLASSES), ways, len(self._eligible))]
        class_keys = fold(keys.unsqueeze(-1), _MEMBERS, torch.arange(ways))
        sizes, shape = pool.sizes[classes % len(pool.names)], self.shape
        counts, support_counts = torch.full_like(classes, shape.queries), torch.full_like(classes, shots)
        if shape.dirichlet is not None:
            shares = ways, ways * shape.queries, shape.dirichlet
            counts = dirichlet_counts(fold(keys, _SHARES), *shares)
        if shape.support_dirichlet is not None:  # one of each class; the others by their shares
            shares = ways, ways * (shots - 1), shape.support_dirichlet
            support_counts = 1 + dirichlet_counts(fold(keys, _SUPPORT_SHARES), *shares)
        if shape.small_classes == "cap":
            counts = capped_counts(sizes - shots, shape.queries)
        # The first members of a class do not depend on how many are drawn: nor does the support set on the queries.
        most = shape.most_support(ways, shots)
        members = choose(class_keys, most + int(counts.max()), sizes, at_most=shape.small_classes == "cap")
        return Draw(classes, members[..., :most], members[..., most:], counts, support_counts)

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
        """The episode of a draw whose classes differ in their numbers of examples: as many in all in each task."""
        pool = self.origin
        assert isinstance(pool, Pool)
        parts = ((draw.support, draw.support_counts), (draw.query, draw.counts))
        support, query = (_gathered(pool, draw.classes, *part) for part in parts)
        device = pool.x.device
        return Episode(support, query, draw.classes.shape[1], numbers.to(device), draw.classes.to(device))

    def _meta_batch(self, indices: Sequence[int]) -> int:
        """The number of the meta-batch that all of the tasks belong to."""
        first, *others = sorted({i // self.meta_batch_size for i in indices})
        if others:
            raise ValueError(f"one draw is one meta-batch, these tasks belong to {[first, *others]}")
        return first


def _gathered(pool: Pool, classes: Tensor, members: Tensor, counts: Tensor) -> Examples:
    """The first `counts[t, n]` of the `(T, N, most)` members of each class, with their labels, class by class."""
    tasks, ways = classes.shape
    drawn = torch.arange(members.shape[-1]) < counts.unsqueeze(-1)
    labels = torch.arange(ways).view(1, -1, 1).expand_as(drawn)[drawn].view(tasks, -1)
    x = pool.gather(classes.gather(1, labels), members[drawn].view(tasks, -1, 1)).squeeze(2)
    return Examples(x, labels.to(pool.x.device))


def capped_counts(rooms: Tensor, queries: int) -> Tensor:
    """Numbers of queries where some classes have fewer than Q left: the others have more, N Q in all.

    Args:
        rooms: `(T, N)` examples of each class that are left for queries, at least N Q in each row.
        queries: Q.

    Returns:
        `(T, N)` int64, at most `rooms`. The first classes with examples to spare make up for those that lack them.
    """
    counts = rooms.clamp(max=queries)
    spare = rooms - counts
    lacking = rooms.shape[-1] * queries - counts.sum(-1, keepdim=True)
    if (spare.sum(-1, keepdim=True) < lacking).any():
        raise ValueError(f"{rooms.sum(-1).min()} examples are left for {rooms.shape[-1] * queries} queries")
    taken_before = spare.cumsum(-1) - spare
    return counts + (lacking - taken_before).clamp(min=0).minimum(spare)


def large_enough(pool: Pool, shape: EpisodeShape) -> Tensor:
    """The classes that have enough examples to be drawn, as numbers in [0, num_classes); all, where none is skipped."""
    if shape.small_classes == "refuse" or pool.y is not None:
        return torch.arange(pool.num_classes)
    return (pool.sizes >= shape.needed()).repeat(pool.rotations).nonzero()[:, 0]


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
    classes = large_enough(pool, shape)
    if ways > len(classes):
        left_out = pool.num_classes - len(classes)
        few = f" with at least {shape.needed()} examples" if left_out else ""
        raise UserError(
            f"{test}ways: {ways} classes a task were asked for, but the {split} split has {len(classes)}{few}; "
            + (f"ask for at most {len(classes)}, or " if len(classes) > 1 else "")
            + (f"ask for fewer {test}shots or {test}queries, or " if left_out else "")
            + f"give the {split} split {ways} classes or more, {more_classes()}"
        )
    if shape.small_classes == "cap":
        # Of fewer classes the smallest leave less room on average, so the smallest way decides.
        fewest = shape.ways if isinstance(shape.ways, int) else shape.ways[0]
        rooms = pool.sizes[classes % len(pool.names)] - (shape.needed() - 1)
        least = int(rooms.sort().values[:fewest].sum())
        if least < fewest * shape.queries:
            raise UserError(
                f"{test}queries: {shape.queries} a class make {fewest * shape.queries} queries a task, but the "
                f"{fewest} smallest classes of the {split} split have {least} examples beside their support examples; "
                f"ask for at most {least // fewest}"
                + ("" if least >= fewest else f", which is too few: give small_classes skip, or fewer {test}shots")
            )
        return
    if shape.small_classes == "skip":
        return
    smallest = int(pool.sizes.min())
    if examples > smallest:
        name = pool.names[int(pool.sizes.argmin())]
        if shape.support_dirichlet is not None:
            raise UserError(
                f"support_dirichlet: a class may have up to {examples} examples in a task, but class {name!r} of the "
                f"{split} split has {smallest}; ask for fewer {test}shots or {test}queries, or leave such classes out "
                "by small_classes skip"
            )
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
            f"ask for {fewer} or leave such classes out by small_classes skip"
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
