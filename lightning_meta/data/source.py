"""What a source promises: it knows files, and nothing about sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_meta.batches import Examples, Split
from lightning_meta.configuration import RemembersArguments
from lightning_meta.data.hashes import HashedParts, of_sets
from lightning_meta.data.pool import Pool
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.tasks import Task
from lightning_meta.tasks.table import TableSpec


class Source(RemembersArguments, ABC):
    """Finds, verifies and decodes the files of one data set, and hands over a pool per split.

    The class splits are fixed and disjoint. Constructing a source is cheap and touches no file.

    Attributes:
        regression: Whether its pools hold regression tasks in place of classes: examples with real targets.
        task_hashes: Hashes of the tasks made of pools of `held_out`, where checking the cache has computed them; else
            None.
    """

    regression: bool = False
    task_hashes: HashedParts | None = None

    def prepare(self) -> None:
        """Download and decode into the cache what is not there yet; runs in one process per machine."""

    @abstractmethod
    def pools(self) -> dict[Split, Pool]:
        """The pools of the splits, classes disjoint; called in every process, after `prepare`."""

    def more_classes(self, needs: Mapping[Split, tuple[int, int]]) -> str:
        """How the splits get the classes that tasks need; ends the error where one has too few.

        Args:
            needs: Classes of a task, and examples of each, by split.
        """
        return "by more data or another division"

    def example_names(self, split: Split) -> Mapping[str, Sequence[str]]:
        """By class of a split, the names of its examples in the order of the pool; empty where they have numbers alone.

        Lists of tasks name examples so.
        """
        return {}

    def prepare_held_out(self) -> None:
        """As `prepare`, before `held_out`; by default the same."""
        self.prepare()

    def held_out(self) -> dict[Split, Pool]:
        """Pools for multi-task learning: every class in every split, its examples divided between them.

        Raises:
            UserError: The data set has no such division.
        """
        raise UserError(
            f"source: {type(self).__name__} does not divide the examples of a class; it serves episodes only"
        )

    def fingerprint(self) -> str:
        """A hash of the decoded examples, recorded with the results; "" where there is none."""
        return ""


class TaskSource(RemembersArguments, ABC):
    """Finds, verifies and decodes the files of one data set of many tasks, and hands over a `TaskSet` per split.

    Constructing a source is cheap and touches no file.

    Attributes:
        task_hashes: Hashes of sets of `sets`, where checking the cache has computed them; else None.
    """

    task_hashes: HashedParts | None = None

    def prepare(self) -> None:
        """Download and decode into the cache what is not there yet; runs in one process per machine."""

    @abstractmethod
    def tasks(self) -> dict[str, Task]:
        """The tasks by name, in order; not yet fitted to training targets. Called after `prepare`."""

    @abstractmethod
    def sets(self) -> dict[Split, TaskSet]:
        """The examples of the splits, every task in each; called in every process, after `prepare`.

        Whatever is learned of the inputs (their mean and scale) is learned from the training split alone.
        """

    def descriptors(self) -> Mapping[str, tuple[float, ...]]:
        """z_i by name of the task, where the data describes its tasks; else empty."""
        return {}

    def table(self) -> TableSpec | None:
        """How new rows become inputs, where the source reads a table; called after `sets`."""
        return None

    def fingerprint(self) -> str:
        """The sha256 of all examples as `sets` gives them, recorded with the results."""
        sets = self.sets()
        known = self.task_hashes and self.task_hashes.of(sets)
        return (known or of_sets(sets)).whole


class TaskGenerator(RemembersArguments, ABC):
    """Makes tasks out of random numbers instead of stored examples; every example is new.

    Attributes:
        input_shape: The shape of one input.
        outputs: The dimension of one target.
    """

    input_shape: tuple[int, ...]
    outputs: int

    @abstractmethod
    def generate(self, keys: Tensor, shots: int, queries: int) -> tuple[Examples, Examples]:
        """Make T tasks, each a pure function of its key.

        Args:
            keys: `(T,)` int64, see `lightning_meta.functional.random_bits`.
            shots: K support examples.
            queries: Q query examples.

        Returns:
            Support and query, `x` `(T, K, *input_shape)` and `y` `(T, K, outputs)`.
        """
