"""Samplers and loaders of batches: division among ranks, and exact resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from lightning_meta.data.episodes import Episodes
from lightning_meta.data.task_batches import AllExamples, TaskBatches
from lightning_meta.errors import UserError

the_only: Callable[[Any], Any] = itemgetter(0)
"""Collate function for datasets whose items are whole batches, of which a loader takes one at a time."""


def as_is(batch: Any) -> Any:
    """Collate function for datasets that return several items as one batch."""
    return batch


class ResumableSampler(DistributedSampler[int]):
    """Numbers training batches over the whole run: epoch e has the batches from e*B to (e+1)*B - 1.

    Batch b consists of the W * `share` items of the dataset from b * W * `share` on, of which rank r takes the r-th
    share. Deriving from `DistributedSampler` makes Lightning keep the sampler and call `set_epoch`.

    Args:
        dataset: Dataset with the items of one epoch; it is also indexed beyond its length, so every epoch is new.
        batches: Number of batches B per epoch.
        share: Number of items per batch and rank.
        counted_in: Values, by name of the option, that define the numbering of the batches; a resume must not change
            them.
        num_replicas: Number of ranks W.
        rank: This rank r.

    Attributes:
        next: Number of the next batch.
        collate: Collate function for the items of the dataset.
    """

    def __init__(
        self, dataset: Any, batches: int, share: int, counted_in: Mapping[str, float], num_replicas: int, rank: int
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        self.batches, self.share, self.counted_in = batches, share, counted_in
        self.next = 0
        self.collate: Callable[[Any], Any] = as_is

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch, unless a resumed run is already in the middle of it."""
        if self.next // self.batches != epoch:
            self.next = epoch * self.batches

    def __iter__(self) -> Iterator[int]:
        """Iterate over the items of this rank, from the next batch to the end of its epoch."""
        end = (self.next // self.batches + 1) * self.batches
        for batch in range(self.next, end):
            first = (batch * self.num_replicas + self.rank) * self.share
            yield from range(first, first + self.share)

    def __len__(self) -> int:
        return self.batches * self.share


class TrainSampler(ResumableSampler):
    """Divides every meta-batch of T tasks among W ranks: rank r gets the tasks from r*T/W to (r+1)*T/W - 1.

    Args:
        dataset: Training tasks of one epoch.
        num_replicas: Number of ranks W.
        rank: This rank r.

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
    """Refuse a meta-batch that ranks cannot share equally; DDP averages gradients over ranks with equal weights.

    Args:
        meta_batch_size: Number of tasks T per meta-batch, over all ranks.
        ranks: Number of ranks W.

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
    """Gives every rank the same batch numbers; the dataset selects the share of the rank.

    Args:
        dataset: Batches of one epoch.
        counted_in: Options, by name, that determine the content of a batch.
    """

    def __init__(self, dataset: TaskBatches, counted_in: Mapping[str, float]) -> None:
        batches = len(dataset)
        super().__init__(dataset, batches, 1, {**counted_in, "batches_per_epoch": batches}, num_replicas=1, rank=0)
        self.collate = the_only


class FirstBatches(DistributedSampler[int], SequentialSampler):
    """Repeats the batches of the first epoch of this rank in every epoch, for the Trainer's `overfit_batches`.

    Lightning keeps a sampler that is both a `DistributedSampler` and, for `overfit_batches`, a `SequentialSampler`.

    Args:
        sampler: Sampler of the training batches.
    """

    def __init__(self, sampler: ResumableSampler) -> None:
        super().__init__(sampler.dataset, num_replicas=sampler.num_replicas, rank=sampler.rank, shuffle=False)
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)  # its `set_epoch` is never called, so it stays in the first epoch

    def __len__(self) -> int:
        return len(self.sampler)


class EvaluationSampler(DistributedSampler[int], SequentialSampler):
    """Gives rank r the meta-batches r, r + W, r + 2W, ..., so that every task is evaluated once for any W.

    Lightning requires at least one batch per rank: a rank without one repeats task 0, which `TaskScores` counts once.

    Args:
        dataset: All evaluation tasks.
        num_replicas: Number of ranks W.
        rank: This rank r.
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
    """A loader of training batches that counts the batches it has returned, for an exact resume.

    Args:
        sampler: Sampler of the training batches.
        **options: Options of `torch.utils.data.DataLoader`.
    """

    sampler: ResumableSampler

    def __init__(self, sampler: ResumableSampler, **options: Any) -> None:
        options = {"batch_size": sampler.share, "collate_fn": sampler.collate, **options}
        super().__init__(sampler.dataset, sampler=sampler, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the base says which iterator
        # Workers prefetch, so the sampler is ahead of training: count a batch only when it is returned.
        for batch in super().__iter__():
            self.sampler.next += 1
            yield batch

    def state_dict(self) -> dict[str, float]:
        """Return the number of the next batch in the run, and the values that define the numbering."""
        return {"next": self.sampler.next, **self.sampler.counted_in}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a saved batch; the numbers of ranks and workers may differ.

        Raises:
            UserError: The size of batches or epochs has changed, so that examples would be lost or repeated.
        """
        for option, now in self.sampler.counted_in.items():
            if state.get(option) != now:
                raise UserError(
                    f"{option}: the run to resume has {state.get(option, 'another kind of loader')}, got {now}; "
                    "resume with the same number, or start a new run"
                )
        self.sampler.next = int(state["next"])
