"""Small default data sets for modules under test."""

from __future__ import annotations

import torch

from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.data import EpisodicDataModule, MultiTaskDataModule, Pool
from lightning_meta.data.source import Source, TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.tasks import Classification, Regression, Task


class NoisyPictures(Source):
    """Grey images of 16x16 pixels: the picture of the class plus noise."""

    def pools(self) -> dict[Split, Pool]:
        """8, 5 and 5 classes for the three splits, each with 8 examples."""
        generator = torch.Generator().manual_seed(0)
        pools: dict[Split, Pool] = {}
        for split, classes in zip(SPLITS, (8, 5, 5), strict=True):
            picture = torch.rand(classes, 1, 1, 16, 16, generator=generator)
            x = 160 * picture + 95 * torch.rand(classes, 8, 1, 16, 16, generator=generator)
            names = tuple(f"{split} {c}" for c in range(classes))
            pools[split] = Pool(x.flatten(0, 1).byte(), torch.full((classes,), 8), names, names)
        return pools


class Sums(TaskSource):
    """Three tasks on four numbers: their sum, which of three is the largest, and the sign of the first."""

    def tasks(self) -> dict[str, Task]:
        """One regression and two classifications."""
        return {"sum": Regression(1), "largest": Classification(3), "sign": Classification(2)}

    def sets(self) -> dict[Split, TaskSet]:
        """24 examples of each task in every split."""
        generator = torch.Generator().manual_seed(0)
        sets: dict[Split, TaskSet] = {}
        for split in SPLITS:
            x = torch.randn(3, 24, 4, generator=generator)
            y = [x[0].sum(-1, keepdim=True), x[1, :, :3].argmax(-1), (x[2, :, 0] > 0).long()]
            sets[split] = TaskSet.of_examples(
                {name: Examples(*pair) for name, *pair in zip(self.tasks(), x, y, strict=True)}
            )
        return sets


def pictures() -> EpisodicDataModule:
    """3-way 2-shot episodes, four in a meta-batch."""
    return EpisodicDataModule(
        NoisyPictures(),
        ways=3,
        shots=2,
        queries=3,
        meta_batch_size=4,
        meta_batches_per_epoch=3,
        val_tasks=4,
        test_tasks=4,
        seed=0,
    )


def sums() -> MultiTaskDataModule:
    """Eight examples of each task in a batch."""
    return MultiTaskDataModule(Sums(), batch_size=8, batches_per_epoch=3, seed=0)
