"""Training of a multi-task module on arrays: in memory and without output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import inf, isnan
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from lightning_meta.batches import Split
from lightning_meta.data.multi_task import MultiTaskDataModule
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.tasks import Task

LOGGERS = ("lightning_meta", "lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric")


def device_of(accelerator: str) -> torch.device:
    """The device of a Trainer's accelerator, whose random generator is seeded."""
    on_cuda = accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if on_cuda else "cpu")


class Arrays(TaskSource):
    """Tasks in memory.

    Args:
        tasks: The tasks by name.
        train: The training rows.
        val: The validation rows, used for early stopping.
    """

    def __init__(self, tasks: Mapping[str, Task], train: TaskSet, val: TaskSet) -> None:
        self._tasks, self._train, self._val = tasks, train, val

    def tasks(self) -> dict[str, Task]:
        """The tasks by name."""
        return dict(self._tasks)

    def sets(self) -> dict[Split, TaskSet]:
        """The rows of each split; the validation rows also serve as test rows, since nothing is tested."""
        return {"train": self._train, "val": self._val, "test": self._val}


class KeepBest(Callback):
    """Early stopping in memory: keeps the weights with the best `val/score`; the lower `val/loss` breaks ties.

    Args:
        patience: Number of epochs without improvement after which training stops.

    Attributes:
        epoch: Epoch of the best validation, counted from 1.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.epoch = patience, 0
        self._best, self._weights = (-inf, -inf), dict[str, Any]()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the best epoch so far; the module has logged its metrics before."""
        score, loss = (float(trainer.callback_metrics[f"val/{name}"]) for name in ("score", "loss"))
        rank = (-inf if isnan(score) else score, -inf if isnan(loss) else -loss)
        epoch = trainer.current_epoch + 1
        if rank > self._best or not self.epoch:
            self._best, self.epoch, self._weights = rank, epoch, copy.deepcopy(pl_module.state_dict())
        trainer.should_stop = trainer.should_stop or epoch - self.epoch >= self.patience

    def restore(self, module: MultiTaskModule) -> None:
        """Restore the best weights."""
        module.load_state_dict(self._weights)


def train(
    module: MultiTaskModule,
    data: MultiTaskDataModule,
    *,
    max_epochs: int,
    patience: int | None,
    accelerator: str,
) -> int:
    """Train a module in place; afterwards it has its best weights and is in evaluation mode on the CPU.

    Args:
        module: The module to train.
        data: The data to train on.
        max_epochs: Largest number of epochs.
        patience: Patience of `KeepBest`; None trains for `max_epochs` without validation.
        accelerator: Accelerator of the Trainer.

    Returns:
        Epoch of the weights, counted from 1.
    """
    keep = None if patience is None else KeepBest(patience)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=max_epochs,
        num_sanity_val_steps=0,
        limit_val_batches=0 if keep is None else None,
        log_every_n_steps=0,
        callbacks=[] if keep is None else [keep],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    epochs = trainer.current_epoch
    if keep is not None:
        keep.restore(module)
        epochs = keep.epoch
    module.trainer = None
    module.cpu().eval()
    return epochs


def held_out_rows(groups: list[NDArray[np.bool_]], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Draw the validation rows such that at least one row of every group remains for training.

    Args:
        groups: Masks `(n,)` of the rows that have a label of a task, or of one of its classes.
        fraction: Share of validation rows, in (0, 1).
        seed: Seed of the draw.

    Returns:
        Mask of the validation rows, `(n,)`.

    >>> int(held_out_rows([np.array([True, True, True, True])], 0.25, seed=0).sum())
    1
    """
    count = len(groups[0])
    order = np.random.default_rng(seed).permutation(count)
    held = np.zeros(count, np.bool_)
    held[order[: max(1, round(fraction * count))]] = True
    for group in groups:
        if group.any() and not (group & ~held).any():
            held &= ~group
    return held
