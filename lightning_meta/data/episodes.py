"""Episodes as a pure function of (seed, split, task), independent of order and rank.

The way and shot of meta-batch b are drawn from (seed, split, b), and each of its tasks from (seed, split, task).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_meta.batches import SPLITS, Episode, Examples, Split
from lightning_meta.checks import instance, whole
from lightning_meta.data.class_shares import dirichlet_counts
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import TaskGenerator
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import choose, fold, integers, key

Range = int | tuple[int, int]
SmallClasses = Literal["refuse", "skip", "cap"]

# Purpose of a draw, part of its key, so that draws for different purposes are independent.
_WAYS, _SHOTS, _CLASSES, _MEMBERS, _GENERATED, AUGMENTED, _SHARES, _SUPPORT_SHARES = range(8)


class EpisodeShape(NamedTuple):
    """The sizes of an episode; ways and shots may be ranges, both ends included.

    Attributes:
        ways: Number of classes N of a task.
        shots: Number of support examples K per class.
        queries: Number of query examples Q per class; with `dirichlet`, the mean per class.
        dirichlet: Concentration α > 0 of the Dirichlet distribution of the class shares in the query set, with which
            all N Q queries of a task may be of one class; None for Q of each class.
        support_dirichlet: Concentration α > 0 of the class shares among the N K support examples, with at least one
            per class; None for K of each class.
        small_classes: Treatment of classes with too few examples: an error (`refuse`), exclusion (`skip`), or fewer
            queries of these and more of other classes of the task (`cap`).
    """

    ways: Range
    shots: Range
    queries: int
    dirichlet: float | None = None
    support_dirichlet: float | None = None
    small_classes: SmallClasses = "refuse"

    def largest(self) -> tuple[int, int]:
        """Return the largest N and the maximum number of examples per class, K + Q if classes are balanced."""
        ways, shots = (r if isinstance(r, int) else r[1] for r in (self.ways, self.shots))
        queries = self.queries * (1 if self.dirichlet is None else ways)
        return ways, self.most_support(ways, shots) + queries

    def most_support(self, ways: int, shots: int) -> int:
        """Return the maximum number of support examples per class in a task of N ways and K shots."""
        return shots if self.support_dirichlet is None else ways * (shots - 1) + 1

    def needed(self) -> int:
        """Return the minimum number of examples of a class that can be drawn."""
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
        support: `(T, N, most)` indices of examples within their class; class n of task t uses the first
            `support_counts[t, n]`.
        query: `(T, N, most)` indices, disjoint from `support`; class n of task t uses the first `counts[t, n]`.
        counts: `(T, N)` number of queries of each class; the sum over classes is the same for all tasks.
        support_counts: `(T, N)` number of support examples of each class; the sum over classes is the same for all
            tasks.
    """

    classes: Tensor
    support: Tensor
    query: Tensor
    counts: Tensor
    support_counts: Tensor


class Episodes(Dataset[Episode], ABC):
    """A map-style dataset of tasks, indexed by number and returned as meta-batches.

    Attributes:
        origin: Source of the examples.
        shape: Way, shot and queries.
        meta_batch_size: Number of tasks T of a meta-batch, which have the same way and shot.
        num_tasks: Length of the dataset.
    """

    origin: Pool | TaskGenerator
    shape: EpisodeShape
    meta_batch_size: int
    num_tasks: int

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Episode:
        """Return the tasks `indices`, which must belong to one meta-batch."""

    @abstractmethod
    def classes(self, indices: Sequence[int]) -> Tensor:
        """Return the `(T, N)` classes of the pool for each label of the tasks `indices` of one meta-batch."""

    def __len__(self) -> int:
        return self.num_tasks

    def __iter__(self) -> Iterator[Episode]:
        """Iterate over tasks 0 to `len(self)` - 1, each with T = 1. Iteration by indexing alone would not end."""
        return map(self.__getitem__, range(self.num_tasks))

    def __getitem__(self, index: int) -> Episode:
        """Return the task `index` as a meta-batch with T = 1."""
        return self.__getitems__([index])


class EpisodeDataset(Episodes):
    """A map-style dataset whose item i is task `i % T` of meta-batch `i // T`.

    Args:
        origin: A pool of stored examples, or a generator of tasks.
        split: Name of the split, part of every random key.
        shape: Way, shot and queries.
        meta_batch_size: Number of tasks T of a meta-batch, which have the same way and shot.
        num_tasks: Length of the dataset; indices beyond it are valid as well.
        seed: Seed of all draws.
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
                self.shape = shape._replace(ways=1)  # an episode has the rows of one task

    def __getitems__(self, indices: Sequence[int]) -> Episode:
        """Return the tasks `indices` of one meta-batch, drawn together by tensor indexing."""
        numbers = torch.as_tensor(indices, dtype=torch.int64)
        ways, shots = self.sizes(self._meta_batch(indices))
        if isinstance(self.origin, TaskGenerator):
            support, query = self.origin.generate(key(self._root, _GENERATED, numbers), shots, self.shape.queries)
            _check_generated(self.origin, support, len(numbers), shots)
            _check_generated(self.origin, query, len(numbers), self.shape.queries)
            return Episode(_dense(support), _dense(query), 0, numbers)
        draw = self.draw(indices)
        if self.origin.y is not None:
            return self._of_one_task(draw, numbers)
        if not self.shape.balanced:
            return self._unbalanced(draw, numbers)
        x = self.origin.gather(draw.classes, torch.cat([draw.support, draw.query], dim=-1))  # (T, N, K + Q, ...)
        # `repeat` instead of `expand`, since pinned memory needs tensors without shared elements.
        labels = torch.arange(ways, device=x.device).repeat(len(indices), 1)
        support, query = (
            Examples(part.flatten(1, 2), labels.repeat_interleave(part.shape[2], dim=1))
            for part in x.split([shots, self.shape.queries], dim=2)
        )
        return Episode(support, query, ways, numbers.to(x.device), draw.classes.to(x.device))

    def sizes(self, meta_batch: int) -> tuple[int, int]:
        """Return the way and shot of a meta-batch."""
        ways, shots = self.shape.ways, self.shape.shots
        if not isinstance(ways, int):
            ways = int(integers(key(self._root, _WAYS, meta_batch), *ways))
        if not isinstance(shots, int):
            shots = int(integers(key(self._root, _SHOTS, meta_batch), *shots))
        return ways, shots

    def classes(self, indices: Sequence[int]) -> Tensor:
        """Return the `(T, N)` classes of the pool for each label of the tasks `indices` of one meta-batch.

        In regression, the result is the `(T, 1)` stored task of each episode.
        """
        return self.draw(indices).classes

    def draw(self, indices: Sequence[int]) -> Draw:
        """Draw the classes and examples of the tasks `indices` of one meta-batch."""
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
        if shape.support_dirichlet is not None:  # at least one per class; the shares divide the others
            shares = ways, ways * (shots - 1), shape.support_dirichlet
            support_counts = 1 + dirichlet_counts(fold(keys, _SUPPORT_SHARES), *shares)
        if shape.small_classes == "cap":
            counts = capped_counts(sizes - shots, shape.queries)
        # The first members do not depend on how many are drawn, so the support set does not depend on the queries.
        most = shape.most_support(ways, shots)
        members = choose(class_keys, most + int(counts.max()), sizes, at_most=shape.small_classes == "cap")
        return Draw(classes, members[..., :most], members[..., most:], counts, support_counts)

    def _of_one_task(self, draw: Draw, numbers: Tensor) -> Episode:
        """Gather the meta-batch of a regression draw, in which each episode has the rows of one stored task."""
        assert isinstance(self.origin, Pool)
        members = torch.cat([draw.support, draw.query], dim=-1)  # (T, 1, K + Q)
        gathers = self.origin.gather, self.origin.gather_targets
        x, y = (gather(draw.classes, members).flatten(1, 2) for gather in gathers)
        shots = draw.support.shape[-1]
        support, query = Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])
        return Episode(_dense(support), _dense(query), 0, numbers.to(x.device))

    def _unbalanced(self, draw: Draw, numbers: Tensor) -> Episode:
        """Gather the meta-batch of a draw with different numbers of examples per class but equal totals per task."""
        pool = self.origin
        assert isinstance(pool, Pool)
        parts = ((draw.support, draw.support_counts), (draw.query, draw.counts))
        support, query = (_gathered(pool, draw.classes, *part) for part in parts)
        device = pool.x.device
        return Episode(support, query, draw.classes.shape[1], numbers.to(device), draw.classes.to(device))

    def _meta_batch(self, indices: Sequence[int]) -> int:
        """Return the number of the meta-batch to which all of the tasks belong."""
        first, *others = sorted({i // self.meta_batch_size for i in indices})
        if others:
            raise ValueError(f"one draw is one meta-batch, these tasks belong to {[first, *others]}")
        return first


def _gathered(pool: Pool, classes: Tensor, members: Tensor, counts: Tensor) -> Examples:
    """Gather the first `counts[t, n]` of the `(T, N, most)` members of each class, in order of their labels."""
    tasks, ways = classes.shape
    drawn = torch.arange(members.shape[-1]) < counts.unsqueeze(-1)
    labels = torch.arange(ways).view(1, -1, 1).expand_as(drawn)[drawn].view(tasks, -1)
    x = pool.gather(classes.gather(1, labels), members[drawn].view(tasks, -1, 1)).squeeze(2)
    return Examples(x, labels.to(pool.x.device))


def capped_counts(available: Tensor, queries: int) -> Tensor:
    """Compute the number of queries per class if some classes have fewer than Q examples left, N Q in all.

    Args:
        available: `(T, N)` number of examples of each class that are left for queries, at least N Q in each row.
        queries: Number of queries Q per class.

    Returns:
        `(T, N)` int64 counts, at most `available`. The first classes with spare examples fill the shortfall.
    """
    counts = available.clamp(max=queries)
    spare = available - counts
    lacking = available.shape[-1] * queries - counts.sum(-1, keepdim=True)
    if (spare.sum(-1, keepdim=True) < lacking).any():
        raise ValueError(f"{available.sum(-1).min()} examples are left for {available.shape[-1] * queries} queries")
    taken_before = spare.cumsum(-1) - spare
    return counts + (lacking - taken_before).clamp(min=0).minimum(spare)


def large_enough(pool: Pool, shape: EpisodeShape) -> Tensor:
    """Return the classes that can be drawn, as numbers in [0, num_classes); all of them with `refuse`."""
    if shape.small_classes == "refuse" or pool.y is not None:
        return torch.arange(pool.num_classes)
    return (pool.sizes >= shape.needed()).repeat(pool.rotations).nonzero()[:, 0]


def _dense(examples: Examples) -> Examples:
    """Make the examples of a generator contiguous, since they may be views."""
    return Examples(examples.x.contiguous(), examples.y.contiguous())


def check_pool(
    pool: Pool,
    split: Split,
    shape: EpisodeShape,
    more_classes: Callable[[], str] = lambda: "by more data or another division",
) -> None:
    """Check that a pool has enough classes and examples for the requested episodes.

    Args:
        pool: Examples of the split.
        split: Name of the split.
        shape: Sizes of the episodes.
        more_classes: Returns the end of the error message for too few classes, which says how to get more.

    Raises:
        UserError: The split has too few classes, or a class has too few examples.
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
        # The smaller the way, the fewer examples its smallest classes have on average, so the smallest way decides.
        fewest = shape.ways if isinstance(shape.ways, int) else shape.ways[0]
        available = pool.sizes[classes % len(pool.names)] - (shape.needed() - 1)
        least = int(available.sort().values[:fewest].sum())
        if least < fewest * shape.queries:
            raise UserError(
                f"{test}queries: {shape.queries} a class make {fewest * shape.queries} queries a task, but the "
                f"{fewest} smallest classes of the {split} split have {least} examples beside their support examples; "
                f"ask for at most {least // fewest}"
                + ("" if least >= fewest else f", which is too few: give small_classes='skip', or fewer {test}shots")
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
                f"{split} split has {smallest}; ask for fewer {test}shots or {test}queries, or "
                "set small_classes='skip' to leave such classes out"
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
            f"ask for {fewer} or set small_classes='skip' to leave such classes out"
        )


def _check_rows(pool: Pool, split: Split, rows: int, queries: int) -> None:
    """Check that every regression task of a split has enough rows for an episode."""
    test = "" if split == "train" else "test_"
    if not pool.names:
        raise UserError(f"source: the {split} split has no task; give it one at least")
    smallest = int(pool.sizes.min())
    if rows > smallest:
        few = int((pool.sizes < rows).sum())
        raise UserError(
            f"{test}shots + {test}queries: {rows - queries} + {queries} = {rows} rows a task were asked for, but task "
            f"{pool.names[int(pool.sizes.argmin())]!r} of the {split} split has {smallest} ({few} of {len(pool.names)} "
            f"tasks have too few); ask for fewer, or set least_rows={rows} to leave such tasks out"
        )


def _check_generated(origin: TaskGenerator, examples: Examples, tasks: int, rows: int) -> None:
    """Refuse examples of other shapes than `TaskGenerator.generate` promises: losses would broadcast them."""
    instance(f"{type(origin).__name__}.generate: each of the two results", examples, Examples)
    for name, tensor, last in (("x", examples.x, origin.input_shape), ("y", examples.y, (origin.outputs,))):
        if tensor.shape != (tasks, rows, *last):
            raise UserError(
                f"{type(origin).__name__}.generate returned {name} of shape {tuple(tensor.shape)}; expected "
                f"{(tasks, rows, *last)}: tasks, examples, and the shape of one {'input' if name == 'x' else 'target'}"
            )
