"""Loading: who gets which task, at any number of ranks and workers, and after a resume at any moment."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_meta.batches import Episode
from lightning_meta.data.episodes import EpisodeDataset, EpisodeShape
from lightning_meta.data.loader import EvaluationSampler, TrainLoader, TrainSampler, as_is
from lightning_meta.errors import UserError
from lightning_meta.sources import Sinusoid

T, B = 8, 5  # tasks in a meta-batch, meta-batches in an epoch


def dataset(meta_batch_size: int = T, num_tasks: int = T * B) -> EpisodeDataset:
    return EpisodeDataset(Sinusoid(), "train", EpisodeShape(5, 1, 1), meta_batch_size, num_tasks, 0)


def loader(world: int = 1, rank: int = 0, workers: int = 0) -> TrainLoader:
    sampler = TrainSampler(dataset(), world, rank)
    return TrainLoader(sampler, num_workers=workers, persistent_workers=workers > 0)


def numbers(batches: Iterable[Episode]) -> list[list[int]]:
    return [batch.tasks.tolist() for batch in batches]


def epoch(number: int) -> list[list[int]]:
    """The numbers of the tasks in each batch of an epoch, in one process."""
    return [list(range(b * T, b * T + T)) for b in range(number * B, number * B + B)]


def joined(shares: list[list[list[int]]]) -> list[list[int]]:
    """The whole meta-batches, from the share that each rank has of them."""
    return [list(chain(*parts)) for parts in zip(*shares, strict=True)]


# Training: shares of the same meta-batches


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_the_shares_of_all_ranks_make_up_the_same_meta_batches(world: int) -> None:
    shares = [numbers(loader(world, rank)) for rank in range(world)]
    assert joined(shares) == epoch(0)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_every_rank_draws_different_tasks(world: int) -> None:
    drawn = [batch.support.y for rank in range(world) for batch in loader(world, rank)]
    values = torch.cat(drawn).flatten()
    assert len(values.unique()) == len(values) == T * B


@pytest.mark.parametrize("world", [3, 5, 16])
def test_ranks_that_do_not_divide_the_meta_batch_are_refused(world: int) -> None:
    with pytest.raises(UserError, match=f"meta_batch_size: 8 tasks .* {world} ranks; use a multiple of {world}"):
        TrainSampler(dataset(), world, 0)


def test_the_length_is_that_of_an_epoch_of_the_rank() -> None:
    assert [len(loader(world)) for world in (1, 2, 4)] == [B, B, B]
    assert [len(loader(world).sampler) for world in (1, 2, 4)] == [T * B, T * B // 2, T * B // 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_draws_new_tasks(workers: int) -> None:
    training = loader(workers=workers)
    seen = []
    for number in range(3):
        training.sampler.set_epoch(number)
        seen.append(numbers(training))
    assert seen == [epoch(0), epoch(1), epoch(2)]


def test_an_epoch_that_was_cut_short_is_not_caught_up() -> None:
    # `limit_train_batches`: the next epoch starts with its own tasks.
    training = loader()
    assert numbers(islice(training, 2)) == epoch(0)[:2]
    training.sampler.set_epoch(1)
    assert numbers(training) == epoch(1)


# Training: where a resumed run goes on


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 3, 4])
def test_a_state_taken_mid_epoch_goes_on_with_the_next_meta_batch(done: int, workers: int) -> None:
    # Workers have by then drawn further ahead.
    stopped, resumed = loader(workers=workers), loader(workers=workers)
    for _ in islice(stopped, done):
        state = stopped.state_dict()
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(0)
    assert numbers(resumed) == epoch(0)[done:]
    resumed.sampler.set_epoch(1)
    assert numbers(resumed) == epoch(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_taken_at_the_end_of_an_epoch_goes_on_with_the_next(workers: int) -> None:
    stopped, resumed = loader(workers=workers), loader(workers=workers)
    assert numbers(stopped) == epoch(0)
    resumed.load_state_dict(stopped.state_dict())
    resumed.sampler.set_epoch(1)
    assert numbers(resumed) == epoch(1)


def test_a_state_goes_on_at_another_number_of_ranks() -> None:
    stopped = loader(world=2, rank=1)
    for _ in islice(stopped, 2):
        state = stopped.state_dict()
    shares = []
    for rank in range(4):
        resumed = loader(world=4, rank=rank)
        resumed.load_state_dict(state)
        resumed.sampler.set_epoch(0)
        shares.append(numbers(resumed))
    assert joined(shares) == epoch(0)[2:]


@pytest.mark.parametrize("option", ["meta_batch_size", "meta_batches_per_epoch"])
def test_a_state_counted_in_other_sizes_is_refused(option: str) -> None:
    state = loader().state_dict() | {option: 3}
    with pytest.raises(UserError, match=f"{option}: the run to resume has 3, got"):
        loader().load_state_dict(state)


class Recorder(LightningModule):
    """Remembers which tasks it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        self.seen.append(batch.tasks.tolist())
        return self.weight.square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Saver(Callback):
    """Writes a checkpoint within a step, as Lightning's own callback does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "saved.ckpt")


def trainer(folder: Path, steps: int, **options: Any) -> Trainer:
    return Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, B, B + 2])
def test_a_trainer_that_resumes_meets_every_task_once(tmp_path: Path, stop: int, workers: int) -> None:
    first, second = Recorder(), Recorder()
    trainer(tmp_path, stop, callbacks=[Saver(stop)]).fit(first, loader(workers=workers))
    trainer(tmp_path, 3 * B).fit(second, loader(workers=workers), ckpt_path=tmp_path / "saved.ckpt")
    assert first.seen + second.seen == [*epoch(0), *epoch(1), *epoch(2)]


def test_a_trainer_with_limited_batches_meets_new_tasks_every_epoch(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, 6, limit_train_batches=2).fit(module, loader())
    assert module.seen == epoch(0)[:2] + epoch(1)[:2] + epoch(2)[:2]


# Evaluation: every task once


@given(
    tasks=st.integers(1, 60),
    size=st.integers(1, 9),
    world=st.integers(1, 5),
)
def test_evaluation_covers_each_task_once_in_the_same_meta_batches(tasks: int, size: int, world: int) -> None:
    whole = dataset(size, tasks)
    batches: list[list[int]] = []
    for rank in range(world):
        sampler = EvaluationSampler(whole, world, rank)
        mine = numbers(DataLoader(whole, size, sampler=sampler, collate_fn=as_is))
        assert len(sampler) == sum(map(len, mine)) > 0, "Lightning refuses a rank without a batch"
        batches += mine
    expected = [list(range(first, min(first + size, tasks))) for first in range(0, tasks, size)]
    idle = max(0, world - len(expected))  # ranks that are left without tasks repeat task 0, to be counted once
    assert sorted(batches) == sorted(expected + [[0]] * idle)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_with_a_remainder(world: int) -> None:
    whole = dataset(4, 10)
    shares = [list(EvaluationSampler(whole, world, rank)) for rank in range(world)]
    assert sorted(chain(*shares)) == list(range(10))
    assert [list(EvaluationSampler(whole, world, rank)) for rank in range(world)] == shares
