"""learn2learn's task sets and meta data sets as a source."""

from __future__ import annotations

import warnings
from typing import Any

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import Pool
from lightning_meta.data.source import Source
from lightning_meta.errors import UserError
from lightning_meta.integrations.learn2learn.library import library
from lightning_meta.sources import FromDataset


class FromTasksets(Source):
    """The classes of three learn2learn task sets, such as those of `get_tasksets`, or of three of its meta data sets.

    Only the examples are read. Ways, shots, queries and rotations are arguments of the `EpisodicDataModule`, whose
    draws differ between ranks and are reproducible from a seed (those of learn2learn are neither). Therefore task
    transforms are not run: classes excluded by `FilterLabels` or `FusedNWaysKShots` are excluded here too; for the
    quarter-turns of `RandomClassRotation` a warning names the equivalent option; draws with replacement, and transforms
    that are not part of learn2learn, raise an error.

    Splits that leak raise an error: a task set whose transforms draw from another data set than its own, as in
    learn2learn 0.2.0's Omniglot benchmark, where training tasks contain test characters; and a label in two splits.

    Args:
        train: A `Taskset`, a `MetaDataset` (filtered, or a union), or a data set of pairs, for training.
        validation: Data set for validation, of the same types.
        test: Data set for testing, of the same types.
        separate_labels: Whether each split numbers its own classes from 0, as in learn2learn's mini-ImageNet.
        ignore_transforms: Whether to skip, without a warning or an error, task transforms that are not run.

    Raises:
        UserError: Splits leak, or a task transform cannot be replaced.
    """

    def __init__(
        self,
        train: Any,
        validation: Any,
        test: Any,
        separate_labels: bool = False,
        ignore_transforms: bool = False,
    ) -> None:
        given: dict[Split, Any] = dict(zip(SPLITS, (train, validation, test), strict=True))
        first, second, third = (_dataset(split, tasks) for split, tasks in given.items())
        if not ignore_transforms:
            _check_transforms({split: _transforms(tasks) for split, tasks in given.items()})
        self._source = FromDataset(first, second, third, separate_labels=separate_labels)

    def pools(self) -> dict[Split, Pool]:
        """The pools of the splits; the examples are read once."""
        return self._source.pools()

    def held_out(self) -> dict[Split, Pool]:
        """The same pools, if all three splits have the same classes."""
        return self._source.held_out()

    def fingerprint(self) -> str:
        """The sha256 of all examples and class names."""
        return self._source.fingerprint()


def _transforms(tasks: Any) -> list[Any]:
    if not isinstance(tasks, library().data.Taskset):
        return []
    transforms = tasks.task_transforms
    return [transforms] if callable(transforms) else list(transforms)


def _dataset(split: Split, tasks: Any) -> Any:
    """The data set of a task set, without the classes that its transforms exclude; they must draw from this one."""
    if not isinstance(tasks, library().data.Taskset):
        return tasks
    kept = set(tasks.dataset.labels)
    for transform in _transforms(tasks):
        bound = getattr(transform, "dataset", tasks.dataset)
        if bound is not tasks.dataset:
            raise UserError(
                f"{split}: {type(transform).__name__} draws from another data set ({len(bound)} examples) than the "
                f"task set's own ({len(tasks.dataset)}), so classes of other splits leak into its tasks; "
                "give FromTasksets the three filtered data sets themselves"
            )
        if isinstance(transform, library().data.transforms.CythonFilterLabels):
            kept &= set(transform.labels)
        elif isinstance(transform, library().data.transforms.CythonFusedNWaysKShots):
            kept &= set(transform.filter_labels)
    if len(kept) == len(tasks.dataset.labels):
        return tasks.dataset
    return library().data.FilteredMetaDataset(tasks.dataset, sorted(kept))


def _check_transforms(transforms: dict[Split, list[Any]]) -> None:
    """Warn about quarter-turns, and raise an error for transforms without an equivalent here."""
    rotation = library().vision.transforms.RandomClassRotation
    rotated = []
    for split, transform in [(split, transform) for split, given in transforms.items() for transform in given]:
        if type(transform) is rotation and all(degree % 90 == 0 for degree in transform.degrees):
            rotated.append(split)
        elif getattr(transform, "replacement", False):
            raise UserError(
                f"{split}: {type(transform).__name__} draws with replacement, which EpisodicDataModule does not; leave "
                "that out, or ask for it by FromTasksets(..., ignore_transforms=True)"
            )
        elif type(transform).__module__ != library().data.transforms.__name__:
            name = getattr(transform, "__name__", type(transform).__name__)
            raise UserError(
                f"{split}: the task transform {name} would not be run, as EpisodicDataModule draws the tasks; make it "
                "part of the data set, or leave it out by FromTasksets(..., ignore_transforms=True)"
            )
    if rotated:
        warnings.warn(
            "RandomClassRotation is not run; EpisodicDataModule makes all four quarter-turns of a class classes of "
            f"their own with rotations={rotated}",
            stacklevel=3,
        )
