"""CIFAR-100 as 20 tasks: the classification of the five classes of each superclass."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.cache import load_or_build
from lightning_meta.data.files import OfficialFile, WrongContentError, read_official
from lightning_meta.data.group_tasks import hashes_of_groups, tasks_of_groups
from lightning_meta.data.hashes import HashedParts
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.sources.cifar import ARCHIVE, URL, CifarClass, read_cifar100
from lightning_meta.tasks import Task

VALIDATION = 50  # training images of each class

# The SHA-256 of the masks of test images, class by class in alphabetical order, images sorted by their hash.
DIVISION = "a612e0f3344c7ae1fae32583535b03b296b9b7bcd190de5d8d0fd7f3d78f2c51"


class CIFAR100(TaskSource):
    """CIFAR-100 (Krizhevsky 2009) as 20 tasks of five classes, a superclass each (Rosenbaum et al. 2018; PCGrad 2020).

    The division is the official one: the test split has the 100 test images of each class. Of its 500 training images,
    the 50 whose hashes sort first, effectively a random sample, are for validation and 450 for training; the papers
    train on all 500. In the published data, ten test images are also training images, four of them with the same label.

    Images are uint8 `(3, 32, 32)`. The name of a task is that of its superclass; its labels number its classes in
    alphabetical order. The archive is read from `$LIGHTNING_META_DATA/cifar-100-python.tar.gz`, or downloaded from its
    authors (161 MB).

    At a glance:
        - Tasks: 20 superclasses of 5 classes.
        - Held out: 50 training images of each class, the official test images.
        - From: its authors, or `LIGHTNING_META_DATA`.

    Args:
        url: URL from which to download the archive.
    """

    def __init__(self, url: str = URL) -> None:
        self.url = url

    def prepare(self) -> None:
        """Download and decode what the cache does not hold yet; runs in one process per machine."""
        self.sets()

    def tasks(self) -> dict[str, Task]:
        """Return a classification of five classes for each superclass, in alphabetical order."""
        return self._tasks_and_sets[0]

    def sets(self) -> dict[Split, TaskSet]:
        """Return the train, val and test sets, with 2,250, 250 and 500 images of each task."""
        return self._tasks_and_sets[1]

    @cached_property
    def _tasks_and_sets(self) -> tuple[dict[str, Task], dict[Split, TaskSet]]:
        key = f"the official division, the first {VALIDATION} are val"
        cached = load_or_build("cifar100", key, self._decode, hashes_of_groups)
        tasks, sets = tasks_of_groups(cached.pools)
        self.task_hashes = HashedParts(dict(sets), cached.hashes)
        return tasks, sets

    def _decode(self) -> dict[Split, Pool]:
        classes = read_official(OfficialFile(ARCHIVE, self.url), _read)
        names = sorted(classes, key=lambda name: (classes[name].superclass, name))
        return {split: _pool(split, {name: classes[name] for name in names}) for split in SPLITS}


def _read(path: Path) -> dict[str, CifarClass]:
    classes = read_cifar100(path)
    sha256 = hashlib.sha256(np.concatenate([c.official_test for c in classes.values()]).tobytes()).hexdigest()
    if sha256 != DIVISION:
        raise WrongContentError(f"its division into training and test images is not the official one ({sha256})")
    return classes


def _pool(split: Split, classes: dict[str, CifarClass]) -> Pool:
    test = {name: c.images[c.official_test] for name, c in classes.items()}
    training = {name: c.images[~c.official_test] for name, c in classes.items()}
    part = slice(VALIDATION) if split == "val" else slice(VALIDATION, None)
    images = list(test.values()) if split == "test" else [of_class[part] for of_class in training.values()]
    x = torch.from_numpy(np.concatenate(images)).reshape(-1, 3, 32, 32)
    groups = tuple(c.superclass for c in classes.values())
    return Pool(x, torch.tensor([len(i) for i in images]), tuple(classes), groups)
