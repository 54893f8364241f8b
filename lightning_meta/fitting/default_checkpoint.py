"""The callback that chooses the best checkpoint of a run whose user has not given one."""

from __future__ import annotations

import copy

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_meta.data import EpisodicDataModule
from lightning_meta.errors import UserError, reason_of
from lightning_meta.meta.learner import Learner
from lightning_meta.module import TrainedModule
from lightning_meta.run.checkpoints import RunCheckpoint
from lightning_meta.tasks import EpisodeSpec

OF_REGRESSION = EpisodeSpec("regression", (1,), 1, target_mean=(0.0,), target_scale=(1.0,))
"""Stands for data that have not been read yet, because the name of a task's metric does not depend on them."""


def default_checkpoint(module: LightningModule, data: LightningDataModule) -> RunCheckpoint:
    """The callback for a module: it follows the metric of the task in few-shot regression, else `module.monitor`.

    Args:
        module: The module to train.
        data: The data module, before its setup.

    Raises:
        UserError: The metric of a custom task is unknown before training.
    """
    monitor = getattr(module, "monitor", TrainedModule.monitor)
    regression = isinstance(data, EpisodicDataModule) and data.regression
    if not (regression and isinstance(module, Learner) and monitor == TrainedModule.monitor):
        return RunCheckpoint(monitor)
    described = copy.copy(module)
    described.episodes = module.episodes or OF_REGRESSION
    try:
        metric, higher_is_better = described.task.metric, described.task.higher_is_better
    except Exception as error:  # of a custom task
        raise UserError(
            f"checkpoint: the metric of {type(module).__name__}.task is unknown before training ({reason_of(error)}); "
            "give its name, as in checkpoint=RunCheckpoint('val/mse')"
        ) from error
    return RunCheckpoint(f"val/{metric}", "max" if higher_is_better else "min")
