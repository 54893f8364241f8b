"""learn2learn's task sets and meta data sets as a source."""

from __future__ import annotations

from typing import Any

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import Pool
from lightning_meta.data.sources import FromDataset
from lightning_meta.data.sources.base import Source
from lightning_meta.errors import UserError
from lightning_meta.integrations.learn2learn.library import library


class FromTasksets(Source):
    """The classes of three learn2learn task sets, such as `get_tasksets` gives, or of three of its meta data sets.

    The examples are theirs; way, shot, queries and rotations are the `EpisodicDataModule`'s, whose draws differ between
    ranks and repeat with their seed (learn2learn's do neither), so their task transforms are not used.

    Refused are splits that leak: a task set whose transforms draw from another data set than its own, as in
    learn2learn 0.2.0's Omniglot benchmark, where training tasks hold test characters; and a label in two splits.

    Args:
        train: A `Taskset`, a `MetaDataset` (filtered, or a union), or a data set of pairs.
        validation: The same for validation.
        test: The same for test.
        separate_labels: Each split numbers its own classes from 0, as in learn2learn's mini-ImageNet.
    """

    def __init__(self, train: Any, validation: Any, test: Any, separate_labels: bool = False) -> None:
        given: dict[Split, Any] = dict(zip(SPLITS, (train, validation, test), strict=True))
        first, second, third = (_dataset(split, tasks) for split, tasks in given.items())
        self._source = FromDataset(first, second, third, separate_labels=separate_labels)

    def pools(self) -> dict[Split, Pool]:
        """The pools of the splits, read once."""
        return self._source.pools()

    def held_out(self) -> dict[Split, Pool]:
        """The same pools where all three hold the same classes."""
        return self._source.held_out()

    def fingerprint(self) -> str:
        """The sha256 of all examples and class names."""
        return self._source.fingerprint()


def _dataset(split: Split, tasks: Any) -> Any:
    """The data set of a task set, whose transforms draw from it and no other."""
    if not isinstance(tasks, library().data.Taskset):
        return tasks
    for transform in tasks.task_transforms or ():
        bound = getattr(transform, "dataset", tasks.dataset)
        if bound is not tasks.dataset:
            raise UserError(
                f"{split}: {type(transform).__name__} draws from another data set ({len(bound)} examples) than the "
                f"task set's own ({len(tasks.dataset)}), so classes of other splits leak into its tasks; "
                "give FromTasksets the three filtered data sets themselves"
            )
    return tasks.dataset
