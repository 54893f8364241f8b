"""Tests of episodes, for custom sources and data modules."""

from __future__ import annotations

from abc import abstractmethod
from itertools import combinations

import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Episode, Split
from lightning_meta.data import Augmentation, EpisodicDataModule, Pool
from lightning_meta.data.episodes import EpisodeDataset

EPISODES = 200


class EpisodicDataModuleTests:
    """Subclass it, and return the data module to test from `make`."""

    allow_shared_examples = False
    """Whether an example may occur in two splits."""

    @abstractmethod
    def make(self) -> EpisodicDataModule:
        """A new data module; the same data each time."""

    def ready(self, **changes: object) -> EpisodicDataModule:
        """The data module, ready to train, with some attributes changed."""
        data = self.make()
        for name, value in changes.items():
            setattr(data, name, value)
        data.prepare_data()
        data.setup("fit")
        return data

    def test_classes_are_in_one_split(self) -> None:
        """No class and no example is in two splits; the data module itself refuses shared class names."""
        pools = self.pools()
        for one, other in combinations(pools, 2):
            if not self.allow_shared_examples:
                both = _rows(pools[one].x) & _rows(pools[other].x)
                assert not both, (
                    f"{len(both)} examples are in both {one} and {other}: test data leaks into training; expected none "
                    "in common"
                )

    def test_episodes_are_whole(self) -> None:
        """Ways, shots, queries, labels and shapes match the specification; support and query share no example."""
        data = self.ready()
        for split in SPLITS:
            dataset = data.datasets[split]
            if not isinstance(dataset, EpisodeDataset):  # a list of tasks is checked when it is read
                continue
            for start in range(0, EPISODES, dataset.meta_batch_size):
                batch = dataset.__getitems__(range(start, start + dataset.meta_batch_size))
                if batch.ways:
                    _check_labels(batch, *dataset.sizes(start // dataset.meta_batch_size), dataset.shape.queries)
            if isinstance(dataset.origin, Pool):
                _check_disjoint(dataset)

    def test_the_same_seed_gives_the_same_episodes(self) -> None:
        """Episodes depend only on the seed and their number, not on the order in which they are drawn."""
        first, second = self.ready(seed=3), self.ready(seed=3)
        backwards = [_drawn(second, b) for b in (2, 1, 0)][::-1]
        for batch, (one, other) in enumerate(zip([_drawn(first, b) for b in range(3)], backwards, strict=True)):
            assert _equal(one, other), (
                f"meta-batch {batch} has other episodes when it is drawn again in another order; expected the same, as "
                "they must depend on the seed and the number alone"
            )
        assert not _equal(_drawn(first, 0), _drawn(self.ready(seed=4), 0)), (
            "seeds 3 and 4 give the same episodes; expected different ones"
        )

    def test_tasks_do_not_depend_on_the_rank(self) -> None:
        """Two ranks together draw the meta-batch of one process, and no two of its tasks are the same."""
        data = self.ready()
        dataset, count = data.datasets["train"], data.meta_batch_size
        whole = dataset.__getitems__(range(count))
        shares = [dataset.__getitems__(range(rank, count, 2)) for rank in range(min(2, count))]
        for rank, share in enumerate(shares):
            same = torch.equal(share.support.x, whole.support.x[rank::2])
            assert same, f"rank {rank} of 2 draws other tasks; expected its share of those of one process"
        tasks = {tuple(task.flatten().tolist()) for task in whole.support.x}
        assert len(tasks) == count, (
            f"a meta-batch of {count} tasks has {len(tasks)} different ones; expected every task to be drawn separately"
        )

    def test_loader_processes_change_nothing(self) -> None:
        """The first meta-batches are the same with no worker and with two workers."""
        batches = []
        for workers in (0, 2):
            data = self.ready(num_workers=workers)
            loader = iter(data.train_dataloader())
            batches.append([next(loader) for _ in range(3)])
            del loader
        for one, other in zip(*batches, strict=True):
            assert _equal(one, other), "two loader workers give other episodes; expected those without workers"

    def test_augmented_images_follow_from_the_seed(self) -> None:
        """`Augmentation` gives the same images for any share of a meta-batch, and does not change labels."""
        data, count = self.ready(), self.make().meta_batch_size
        whole = _drawn(data, 0)
        augmented = data.augmented(whole)
        assert torch.equal(augmented.support.y, whole.support.y), (
            "augmentation changed labels; expected it to change inputs only"
        )
        assert _equal(augmented, self.ready().augmented(whole)), (
            "the same episodes were augmented in two ways; expected the same images for the same seed"
        )
        if isinstance(data.augmentation, Augmentation):
            share = data.augmented(data.datasets["train"].__getitems__(range(count // 2, count)))
            same = torch.equal(share.query.x, augmented.query.x[count // 2 :])
            assert same, (
                "a share of a meta-batch was augmented in another way; expected the images of the whole meta-batch"
            )

    def pools(self) -> dict[Split, Pool]:
        """The pools of stored examples by split; empty if tasks are generated."""
        origins = {split: dataset.origin for split, dataset in self.ready().datasets.items()}
        return {split: origin for split, origin in origins.items() if isinstance(origin, Pool)}


def _check_labels(batch: Episode, ways: int, shots: int, queries: int) -> None:
    assert batch.ways == ways, f"an episode has ways={batch.ways}; expected {ways}"
    for part, each in ((batch.support, shots), (batch.query, queries)):
        assert part.x.shape[:2] == part.y.shape, (
            f"inputs have the shape {tuple(part.x.shape)} and labels {tuple(part.y.shape)}; expected the same first "
            "two sizes"
        )
        counts = torch.stack([(part.y == label).sum(1) for label in range(ways)], 1)
        assert (counts == each).all(), (
            f"the numbers of examples of each label are {counts.tolist()[:2]} in the first tasks; expected {each} of "
            "each"
        )


def _check_disjoint(dataset: EpisodeDataset) -> None:
    draw = dataset.draw(range(dataset.meta_batch_size))
    for row in torch.cat([draw.support, draw.query], -1).flatten(0, -2).tolist():
        assert len(set(row)) == len(row), (
            f"an episode draws the examples {row} of a class; expected each at most once, in support or query"
        )


def _drawn(data: EpisodicDataModule, meta_batch: int) -> Episode:
    count = data.meta_batch_size
    return data.datasets["train"].__getitems__(range(meta_batch * count, (meta_batch + 1) * count))


def _equal(one: Episode, other: Episode) -> bool:
    tensors = (
        [(part.x, part.y) for part in (one.support, one.query)],
        [(p.x, p.y) for p in (other.support, other.query)],
    )
    return all(
        a.shape == b.shape and torch.equal(a, b)
        for first, second in zip(*tensors, strict=True)
        for a, b in zip(first, second, strict=True)
    )


def _rows(x: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x.cpu()}
