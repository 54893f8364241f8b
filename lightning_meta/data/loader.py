"""Loading episodes: which tasks go to which rank, and where a resumed run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from lightning_meta.batches import Episode
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.errors import UserError


class TrainSampler(DistributedSampler[int]):
    """Gives rank r its share of every meta-batch: tasks r*T/W to (r+1)*T/W - 1 of T, for W ranks.

    Every epoch draws new tasks: epoch e of B meta-batches holds meta-batches e*B to (e+1)*B - 1. It is a
    `DistributedSampler` so that Lightning leaves it in place and tells it the epoch.

    Args:
        dataset: One epoch of training tasks.
        num_replicas: W.
        rank: r.

    Raises:
        UserError: W does not divide T.
    """

    def __init__(self, dataset: EpisodeDataset, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        size = dataset.meta_batch_size
        if size % num_replicas:
            raise UserError(
                f"meta_batch_size: {size} tasks cannot be shared evenly by {num_replicas} ranks; "
                f"use a multiple of {num_replicas}"
            )
        self.share = size // num_replicas
        self.meta_batch_size = size
        self.batches = len(dataset) // size
        self.next = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless a resumed run is already within it."""
        if self.next // self.batches != epoch:
            self.next = epoch * self.batches

    def __iter__(self) -> Iterator[int]:
        """The task numbers of this rank, from the next meta-batch to the end of its epoch."""
        end = (self.next // self.batches + 1) * self.batches
        for meta_batch in range(self.next, end):
            first = meta_batch * self.meta_batch_size + self.rank * self.share
            yield from range(first, first + self.share)

    def __len__(self) -> int:
        return self.batches * self.share


class EvaluationSampler(DistributedSampler[int]):
    """Gives rank r the meta-batches r, r + W, r + 2W, ...: every task once, at any number W of ranks.

    Lightning asks every rank for a batch: one that is left without repeats task 0, which `TaskScores` counts once.

    Args:
        dataset: All evaluation tasks.
        num_replicas: W.
        rank: r.
    """

    def __init__(self, dataset: EpisodeDataset, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        tasks, size = len(dataset), dataset.meta_batch_size
        starts = range(rank * size, tasks, num_replicas * size)
        self.indices = [i for start in starts for i in range(start, min(start + size, tasks))] or [0]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class TrainLoader(DataLoader[Episode]):
    """A loader of training meta-batches that knows how many were handed out, for an exact resume.

    Args:
        sampler: What each rank gets.
        **options: Those of `torch.utils.data.DataLoader`.
    """

    sampler: TrainSampler

    def __init__(self, sampler: TrainSampler, **options: Any) -> None:
        super().__init__(sampler.dataset, batch_size=sampler.share, sampler=sampler, collate_fn=as_is, **options)

    def __iter__(self) -> Iterator[Episode]:  # type: ignore[override]  # the base says which iterator
        # The sampler runs ahead of training where workers prefetch; `next` moves only as batches are handed out.
        for batch in super().__iter__():
            self.sampler.next += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The number of the next meta-batch, counted over the whole run, and what it is counted in."""
        sampler = self.sampler
        return {"next": sampler.next, "meta_batch_size": sampler.meta_batch_size, "batches": sampler.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved meta-batch, at any number of ranks and workers.

        Raises:
            UserError: Meta-batches or epochs have another size than before, so that tasks would be lost or repeated.
        """
        for name, option in (("meta_batch_size", "meta_batch_size"), ("batches", "meta_batches_per_epoch")):
            now = getattr(self.sampler, name)
            if state[name] != now:
                raise UserError(
                    f"{option}: the run to go on with has {state[name]}, got {now}; "
                    "resume with the same number, or start a new run"
                )
        self.sampler.next = state["next"]


def as_is(batch: Any) -> Any:
    """Episodes come assembled; there is nothing left to collate."""
    return batch
