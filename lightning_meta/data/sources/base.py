"""What a source promises: it knows files, and nothing about sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_meta.batches import Examples, Split
from lightning_meta.data.pool import Pool


class Source(ABC):
    """Finds, verifies and decodes the files of one data set, and hands over a pool per split.

    The class splits are fixed and disjoint. Constructing a source is cheap and touches no file.
    """

    def prepare(self) -> None:  # noqa: B027 - a source without files has nothing to prepare
        """Download and decode into the cache what is not there yet; runs in one process per machine."""

    @abstractmethod
    def pools(self) -> dict[Split, Pool]:
        """The pools of the splits, classes disjoint; called in every process, after `prepare`."""

    def fingerprint(self) -> str:
        """A hash of the decoded examples, recorded with the results; "" where there is none."""
        return ""


class TaskGenerator(ABC):
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
