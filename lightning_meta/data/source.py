"""Base classes of sources, which read data sets or generate tasks; sampling is done elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.checks import instance
from lightning_meta.data.hashes import HashedParts, of_sets
from lightning_meta.data.pool import Pool
from lightning_meta.data.task_set import TaskSet
from lightning_meta.describing import RemembersArguments
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import all_finite
from lightning_meta.tasks import Task
from lightning_meta.tasks.table import TableSpec


class Source(RemembersArguments, ABC):
    """Finds, verifies and decodes the files of one data set, and returns a pool for each split.

    The splits have fixed, disjoint classes. Constructing a source is cheap and accesses no files.

    Attributes:
        regression: Whether the pools have regression tasks, with real-valued targets, in place of classes.
        task_hashes: Hashes of the tasks made from the pools of `held_out`, if they were computed when the cache was
            checked; else None.
    """

    regression: bool = False
    task_hashes: HashedParts | None = None

    def prepare(self) -> None:
        """Download and decode into the cache what is not there yet; runs in one process per machine."""

    @abstractmethod
    def pools(self) -> dict[Split, Pool]:
        """Return the pools of the splits, with disjoint classes. Called in every process, after `prepare`."""

    def more_classes(self, needs: Mapping[Split, tuple[int, int]]) -> str:
        """Return the end of the error message for a split with too few classes, which says how to get more.

        Args:
            needs: Number of classes of a task, and of examples per class, by split.
        """
        return "by more data or another division"

    def example_names(self, split: Split) -> Mapping[str, Sequence[str]]:
        """Return the names of the examples of each class, in the order of the pool; empty if they have only numbers.

        Lists of tasks refer to examples by these names.
        """
        return {}

    def prepare_held_out(self) -> None:
        """Prepare the data for `held_out`; by default, the same as `prepare`."""
        self.prepare()

    def held_out(self) -> dict[Split, Pool]:
        """Return pools for multi-task learning: all splits have all classes, and the examples of a class are divided.

        Raises:
            UserError: The source has no such division.
        """
        raise UserError(
            f"source: {type(self).__name__} does not divide the examples of a class; it supports episodes only"
        )

    def fingerprint(self) -> str:
        """Return a hash of the decoded examples, which is recorded with the results; "" if there is none."""
        return ""


def check_parts(parts: Any, kind: type, method: str) -> None:
    """Check that there is an object of the expected class for each split.

    Args:
        parts: Result of a method of a source.
        kind: Expected class of the objects.
        method: The method, for the error message.

    Raises:
        UserError: A split is missing, or its object is of another class.
    """
    expected = f"source: {method} must return a {kind.__name__} for each of {', '.join(SPLITS)}"
    if not isinstance(parts, Mapping):
        raise UserError(f"{expected}, got {type(parts).__name__}")
    for split in SPLITS:
        if split not in parts:
            raise UserError(f"{expected}; {split} is missing")
        if not isinstance(parts[split], kind):
            raise UserError(f"{expected}; {split} is {type(parts[split]).__name__}")


def check_inputs(x: Tensor, where: str) -> None:
    """Refuse inputs with a gradient, and those whose predictions would be NaN, which would count as wrong labels.

    Args:
        x: Inputs `(n, *input_shape)`.
        where: Task or split of the inputs, for the error message.

    Raises:
        UserError: The inputs are not a tensor or require a gradient, or a value is NaN or infinite.
    """
    instance(f"{where}: inputs", x, Tensor)
    check_detached(x, f"{where}: inputs")
    if x.is_floating_point() and not all_finite(x):
        count = int((~x.isfinite()).reshape(len(x), -1).any(1).sum())
        raise UserError(
            f"{where}: {count} of {len(x)} inputs have values that are NaN or infinite; replace these values, or leave "
            "the examples out"
        )


def check_detached(x: Tensor, what: str) -> None:
    """Refuse stored tensors that require a gradient: backpropagation would reach what they were computed from.

    Raises:
        UserError: The tensor requires a gradient.
    """
    if x.requires_grad:
        raise UserError(f"{what} require a gradient; give x.detach(), or compute them within torch.no_grad()")


class TaskSource(RemembersArguments, ABC):
    """Finds, verifies and decodes the files of one data set of many tasks, and returns a `TaskSet` for each split.

    Constructing a source is cheap and accesses no files.

    Attributes:
        task_hashes: Hashes of the result of `sets`, if they were computed when the cache was checked; else None.
    """

    task_hashes: HashedParts | None = None

    def prepare(self) -> None:
        """Download and decode into the cache what is not there yet; runs in one process per machine."""

    @abstractmethod
    def tasks(self) -> dict[str, Task]:
        """Return the tasks by name, in order, before they are fitted to training targets. Called after `prepare`."""

    @abstractmethod
    def sets(self) -> dict[Split, TaskSet]:
        """Return the examples of the splits, each with all tasks. Called in every process, after `prepare`.

        Statistics of the inputs, such as mean and scale, must be computed from the training split only.
        """

    def descriptors(self) -> Mapping[str, tuple[float, ...]]:
        """Return the descriptor z_i of each task by name; empty if the data set has none."""
        return {}

    def table(self) -> TableSpec | None:
        """Return how rows of a table are converted to inputs; None for other sources. Called after `sets`."""
        return None

    def fingerprint(self) -> str:
        """Return the sha256 of all examples of `sets`, which is recorded with the results."""
        sets = self.sets()
        hashes = self.task_hashes and self.task_hashes.of(sets)
        return (hashes or of_sets(sets)).whole


class TaskGenerator(RemembersArguments, ABC):
    """Generates regression tasks from random numbers instead of stored examples.

    Classes are stored examples: generate them once, as a `Pool` of a `Source`.

    Attributes:
        input_shape: Shape of one input.
        outputs: Dimension of one target.
    """

    input_shape: tuple[int, ...]
    outputs: int

    @abstractmethod
    def generate(self, keys: Tensor, shots: int, queries: int) -> tuple[Examples, Examples]:
        """Generate T tasks, each a pure function of its key.

        Args:
            keys: `(T,)` int64 random keys, see `lightning_meta.functional.random_bits`.
            shots: Number of support examples K.
            queries: Number of query examples Q.

        Returns:
            Support set, `x` `(T, K, *input_shape)` and `y` `(T, K, outputs)`, and query set with Q in place of K.
        """
