"""Loading training batches: what goes to which rank, and where a resumed run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from lightning_meta.data.episodes import Episodes
from lightning_meta.data.task_batches import AllExamples, TaskBatches
from lightning_meta.errors import UserError


class ResumableSampler(DistributedSampler[int]):
    """Training batches counted over the whole run: epoch e of B batches holds those from e*B to (e+1)*B - 1.

    Every epoch draws anew. It is a `DistributedSampler` so that Lightning leaves it in place and tells it the epoch.
    Batch b is W times `share` items of the dataset from number b * W * share on, of which rank r takes the r-th share.

    Args:
        dataset: One epoch of items.
        batches: B.
        share: How many items of the dataset a rank takes for a batch.
        counted_in: What else the numbers are counted in, by name of the option: it may not change in a resume.
        num_replicas: W.
        rank: r.

    Attributes:
        next: The number of the next batch.
    """

    def __init__(
        self, dataset: Any, batches: int, share: int, counted_in: Mapping[str, float], num_replicas: int, rank: int
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        self.batches, self.share, self.counted_in = batches, share, counted_in
        self.next = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless a resumed run is already within it."""
        if self.next // self.batches != epoch:
            self.next = epoch * self.batches

    def __iter__(self) -> Iterator[int]:
        """This rank's items, from the next batch to the end of its epoch."""
        end = (self.next // self.batches + 1) * self.batches
        for batch in range(self.next, end):
            first = (batch * self.num_replicas + self.rank) * self.share
            yield from range(first, first + self.share)

    def __len__(self) -> int:
        return self.batches * self.share


class TrainSampler(ResumableSampler):
    """Gives rank r its share of every meta-batch: tasks r*T/W to (r+1)*T/W - 1 of T, for W ranks.

    Args:
        dataset: One epoch of training tasks.
        num_replicas: W.
        rank: r.

    Raises:
        UserError: W does not divide T.
    """

    def __init__(self, dataset: Episodes, num_replicas: int, rank: int) -> None:
        size = dataset.meta_batch_size
        check_shared(size, num_replicas)
        batches = len(dataset) // size
        counted_in = {"meta_batch_size": size, "meta_batches_per_epoch": batches}
        super().__init__(dataset, batches, size // num_replicas, counted_in, num_replicas, rank)


def check_shared(meta_batch_size: int, ranks: int) -> None:
    """Refuse a meta-batch of which ranks would take unequal shares: the mean of their gradients would be another.

    Args:
        meta_batch_size: T.
        ranks: W.

    Raises:
        UserError: W does not divide T.
    """
    if meta_batch_size % ranks:
        counts = [str(n) for n in range(1, min(meta_batch_size, ranks) + 1) if meta_batch_size % n == 0]
        raise UserError(
            f"meta_batch_size: {meta_batch_size} tasks cannot be shared evenly by {ranks} ranks; use a multiple of "
            f"{ranks}, such as {-(-meta_batch_size // ranks) * ranks}, or fewer ranks ({' or '.join(counts[-4:])})"
        )


class TaskBatchSampler(ResumableSampler):
    """Gives every rank the same batch numbers; the dataset takes the rank's share of each.

    Args:
        dataset: One epoch of batches.
        counted_in: The options that decide what a batch holds.
    """

    def __init__(self, dataset: TaskBatches, counted_in: Mapping[str, float]) -> None:
        batches = len(dataset)
        super().__init__(dataset, batches, 1, {**counted_in, "batches_per_epoch": batches}, num_replicas=1, rank=0)


class FirstBatches(DistributedSampler[int], SequentialSampler):
    """This rank's share of the batches of the first epoch, in every epoch: for the Trainer's `overfit_batches`.

    Lightning leaves a sampler in place that is a `DistributedSampler` and, overfitting, a `SequentialSampler`.

    Args:
        sampler: Whose first epoch it is.
    """

    def __init__(self, sampler: ResumableSampler) -> None:
        super().__init__(sampler.dataset, num_replicas=sampler.num_replicas, rank=sampler.rank, shuffle=False)
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)  # which nobody tells the epoch

    def __len__(self) -> int:
        return len(self.sampler)


class EvaluationSampler(DistributedSampler[int], SequentialSampler):
    """Gives rank r the meta-batches r, r + W, r + 2W, ...: every task once, at any number W of ranks.

    Lightning asks every rank for a batch: one that is left without repeats task 0, which `TaskScores` counts once.

    Args:
        dataset: All evaluation tasks.
        num_replicas: W.
        rank: r.
    """

    def __init__(self, dataset: Episodes | AllExamples, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        count, size = len(dataset), dataset.meta_batch_size
        starts = range(rank * size, count, num_replicas * size)
        self.indices = [i for start in starts for i in range(start, min(start + size, count))] or [0]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class TrainLoader(DataLoader[Any]):
    """A loader of training batches that knows how many were handed out, for an exact resume.

    Args:
        sampler: What each rank gets.
        **options: Those of `torch.utils.data.DataLoader`.
    """

    sampler: ResumableSampler

    def __init__(self, sampler: ResumableSampler, **options: Any) -> None:
        super().__init__(sampler.dataset, batch_size=sampler.share, sampler=sampler, collate_fn=as_is, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the base says which iterator
        # The sampler runs ahead of training where workers prefetch; `next` moves only as batches are handed out.
        for batch in super().__iter__():
            self.sampler.next += 1
            yield batch

    def state_dict(self) -> dict[str, float]:
        """The number of the next batch, counted over the whole run, and what it is counted in."""
        return {"next": self.sampler.next, **self.sampler.counted_in}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a saved batch, at any number of ranks and workers.

        Raises:
            UserError: Batches or epochs have another size than before, so that examples would be lost or repeated.
        """
        for option, now in self.sampler.counted_in.items():
            if state.get(option) != now:
                raise UserError(
                    f"{option}: the run to go on with has {state.get(option, 'another kind of loader')}, got {now}; "
                    "resume with the same number, or start a new run"
                )
        self.sampler.next = int(state["next"])


def as_is(batch: Any) -> Any:
    """Batches come assembled; there is nothing left to collate."""
    return batch
