"""The configuration of a run, kept with it."""

from __future__ import annotations

from pathlib import Path

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_meta.run.files import replacing
from lightning_meta.run.results import git_revision, withdraw_results
from lightning_meta.run.wandb_logger import WandbRunLogger


class SaveConfig(Callback):
    """Writes `config.yaml`, which runs the same training again, into the run directory, and once into W&B.

    Lightning's own callback writes it where the first logger happens to keep its files, and before the data and
    the model have been checked.

    Args:
        text: The configuration as YAML.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, on rank 0, in place of the configuration and the results of before."""
        directory = trainer.log_dir  # every rank asks, as rank 0 tells the others
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False) or directory is None:
            return
        withdraw_results(Path(directory))  # before the configuration becomes another one
        with replacing(Path(directory) / "config.yaml") as file:
            file.write(self.text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.log_config({**yaml.safe_load(self.text), "git_revision": git_revision()})
