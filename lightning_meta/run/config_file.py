"""The `config.yaml` of a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_meta.run.checkpoints import RunCheckpoint, run_logger
from lightning_meta.run.files import replacing
from lightning_meta.run.record import RunRecord, comments
from lightning_meta.run.results import set_aside_results
from lightning_meta.run.revision import git_revision
from lightning_meta.run.wandb_logger import WandbRunLogger


class SaveConfig(Callback):
    """Writes `config.yaml`, which repeats the training, into the run directory, and logs it to W&B once.

    Lightning's own callback writes it to the folder of the first logger, before the data and the model are checked.

    If a run is resumed, its `config.yaml` is replaced only when the first new checkpoint or test exists; the old
    results are renamed at the same time.

    Args:
        text: The configuration as YAML.
        record: The callback that knows whether the run is resumed and what has changed.
    """

    def __init__(self, text: str, record: RunRecord) -> None:
        self.text, self.record = text, record
        self._written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file into a new run directory, on rank 0."""
        logger = run_logger(trainer)
        if not self.record.resumed or (logger is not None and logger.is_new):
            self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the file before the first checkpoint of a resumed run."""
        self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file before the test of a run without further training steps.

        A best checkpoint from before the resume is renamed if its score is not comparable with the new ones.
        """
        self._write(trainer)
        checkpoint = next(c for c in trainer.callbacks if isinstance(c, RunCheckpoint))  # type: ignore[attr-defined]
        directory = trainer.log_dir
        if self.record.resumed and checkpoint.best_score is None and directory and trainer.is_global_zero:
            best = Path(directory) / "checkpoints" / "best.ckpt"
            if best.is_file():
                best.replace(best.with_name("best_before_resume.ckpt"))

    def _write(self, trainer: Trainer) -> None:
        if self._written:
            return
        self._written = True
        directory = trainer.log_dir  # a broadcast, so every rank must call it
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False) or directory is None:
            return
        if self.record.resumed:
            set_aside_results(Path(directory))
        with replacing(Path(directory) / "config.yaml") as file:
            file.write(comments(self.record.resumes) + self.text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.log_config({**yaml.safe_load(self.text), "git_revision": git_revision()})
