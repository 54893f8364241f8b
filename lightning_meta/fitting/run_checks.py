"""Checks, before training, that a run can use the options, the callbacks, the module and the data that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_meta.errors import UserError
from lightning_meta.run.checkpoints import RunCheckpoint
from lightning_meta.run.naming import Naming, as_argument

TRAIN_ALONE = "leave it out, or train with lightning.pytorch.Trainer, without a run directory"
TURNED_OFF: dict[str, tuple[bool, str]] = {
    "enable_checkpointing": (False, "a run is tested and resumed from its best and last checkpoints"),
    "logger": (False, "a run writes metrics.csv"),
    "barebones": (True, "it turns off the logging and the checkpoints of a run"),
}


def check_run_options(options: Mapping[str, Any], say: Naming = as_argument) -> None:
    """Refuse Trainer options that a run sets itself, and would otherwise ignore.

    Args:
        options: Arguments of `lightning.pytorch.Trainer`.
        say: Formats the name of an argument in the error.

    Raises:
        UserError: An option contradicts what a run does.
    """
    for name, (value, why) in TURNED_OFF.items():
        off_anyway = name != "barebones" and options.get("fast_dev_run")  # the Trainer then writes nothing
        if options.get(name) is value and not off_anyway:
            raise UserError(f"{say(f'trainer.{name}', value)}: {why}; {TRAIN_ALONE}")
    if options.get("default_root_dir") is not None:
        raise UserError(
            f"{say('trainer.default_root_dir')}: a run is written to a directory in {say('runs')}; "
            f"leave it out and give {say('runs')}"
        )


def check_parts(callbacks: Iterable[Callback], plugins: Iterable[Any], say: Naming = as_argument) -> None:
    """Refuse callbacks and plugins that change what a run has recorded, or replace its checkpoints.

    Args:
        callbacks: The callbacks given for the Trainer.
        plugins: The plugins given for the Trainer.
        say: Formats the name of an argument in the error.

    Raises:
        UserError: There is a second `RunCheckpoint`, a search for a batch size or learning rate,
            `StochasticWeightAveraging`, or a `CheckpointIO`.
    """
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            raise UserError(
                f"{say('trainer.callbacks')}: {type(callback).__name__} puts its average into the module after the "
                "last checkpoint is written, so a run could neither test nor resume it; use WeightAveraging or "
                "EMAWeightAveraging"
            )
        if isinstance(callback, RunCheckpoint):
            raise UserError(
                f"{say('trainer.callbacks')}: a run has one RunCheckpoint; give it as {say('checkpoint')} instead"
            )
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            found = (
                "batch size of the data" if isinstance(callback, BatchSizeFinder) else "learning rate of the optimizer"
            )
            raise UserError(
                f"{say('trainer.callbacks')}: {type(callback).__name__} would change the {found} after config.yaml has "
                "recorded it; search before the run, and start the run with what you find"
            )
    for plugin in plugins:
        if isinstance(plugin, CheckpointIO):
            raise UserError(
                f"{say('trainer.plugins')}: a run writes its checkpoints itself, each completely or not at all; leave "
                f"out {type(plugin).__name__}"
            )


class PartsCheck(Callback):
    """Refuses callbacks that a module adds by `configure_callbacks`, like those given for the Trainer.

    Args:
        checkpoint: The `RunCheckpoint` of the run.
        say: Formats the name of an argument in the error.
    """

    def __init__(self, checkpoint: RunCheckpoint, say: Naming = as_argument) -> None:
        self._checkpoint, self._say = checkpoint, say

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check all callbacks.

        Raises:
            UserError: The module adds a callback that `check_parts` refuses.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        check_parts([callback for callback in callbacks if callback is not self._checkpoint], [], self._say)


def check_stages(
    module: LightningModule,
    data: LightningDataModule,
    options: Mapping[str, Any],
    say: Naming = as_argument,
) -> None:
    """Refuse a module or data that cannot be tested after training.

    Args:
        module: The module to train.
        data: The data module.
        options: Arguments of `lightning.pytorch.Trainer`.
        say: Formats the name of an argument in the error.

    Raises:
        UserError: A step or a loader is missing.
    """
    if not is_overridden("test_step", module):
        raise UserError(f"{type(module).__name__} has no test_step, and a run tests its best checkpoint; define one")
    if options.get("limit_test_batches") != 0 and not is_overridden("test_dataloader", data):
        raise UserError(
            f"{type(data).__name__} has no test_dataloader, and a run tests its best checkpoint; define one, or give "
            f"{say('trainer.limit_test_batches', 0)} to test nothing"
        )
