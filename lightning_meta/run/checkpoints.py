"""The best and the last checkpoint of a run, from which it goes on as if it had never stopped."""

from __future__ import annotations

import copy
import logging
import time
from math import nan
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_meta.checks import instance, whole
from lightning_meta.errors import NonFiniteLossError, UserError, one_of
from lightning_meta.modes import Mode, contradiction, mode_of
from lightning_meta.run.best import BestScore
from lightning_meta.run.checksums import damage
from lightning_meta.run.logger import RunLogger
from lightning_meta.run.monitors import check_modes, check_task_mode
from lightning_meta.run.randomness import random_state, restore_random_state

_log = logging.getLogger(__name__)


class RunCheckpoint(Callback):
    """Keeps `checkpoints/best.ckpt`, by a validation metric, and `checkpoints/last.ckpt`.

    A checkpoint is written in the quiet moment when the next training step is about to begin: the step before it
    is then complete with its validation, the end of its epoch and its row in `metrics.csv`, even where the three
    coincide. Resumed from either file, a run ends bit for bit as if it had never stopped, given a train loader
    that has `state_dict` and `load_state_dict`.

    Stand it first among the callbacks: what the others log for the next step comes after it.

    Args:
        monitor: The validation metric that decides which checkpoint is the best: never one where it is NaN, and of
            equals the one with the lower `val/loss`, else the earlier; None keeps the last one alone.
        mode: Whether a good metric is large ("max") or small ("min"); by default as its name says, so that losses and
            errors are small.
        every_n_steps: Training steps between two writings of the last checkpoint. It is also written before the
            first step, after every validation and at the end.
    """

    def __init__(
        self, monitor: str | None = "val/accuracy", mode: Mode | None = None, every_n_steps: int = 500
    ) -> None:
        whole(1, **{"checkpoint.every_n_steps": every_n_steps})
        if monitor is not None:
            instance("checkpoint.monitor", monitor, str)
        if mode is not None:
            one_of("checkpoint.mode", mode, Mode)
        try:
            self.mode = mode or ("max" if monitor is None else mode_of(monitor))
        except UserError as error:
            raise UserError(f"checkpoint.{error}") from error
        self.monitor = monitor
        self.every_n_steps = every_n_steps
        self.best = BestScore(self.mode)
        self._last_due, self._best_due = True, False
        self._step, self.between_steps = 0, True
        self._loaders: list[Any] = []
        self._seconds_before = 0.0
        self._began: float | None = None
        self._quiet: dict[str, Any] | None = None  # set while a checkpoint is written in a quiet moment
        self._resumed: dict[str, Any] | None = None

    @property
    def best_score(self) -> float | None:
        """The best score so far; None where no validation had one."""
        return self.best.score

    @property
    def seconds(self) -> float:
        """Seconds spent in training, those before a resume included."""
        return self._seconds_before + (0 if self._began is None else time.monotonic() - self._began)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return self.best.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score."""
        self.best.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse callbacks whose mode contradicts their metric, and forget an earlier run of another Trainer."""
        if stage != "fit":
            return
        check_modes(trainer)
        if self.monitor is not None:
            check_task_mode(pl_module, self.monitor, self.mode)
        if trainer.global_step == 0:  # what a run to resume holds is read after this
            self.best, self._seconds_before = BestScore(self.mode), 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at a quiet moment."""
        self._check_best_is_there(trainer)
        self._began = time.monotonic()
        self._step, self.between_steps = trainer.global_step, True
        self._last_due = self._resumed is None
        self._loaders = _loader_states(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take up what a checkpoint holds of this moment, or write what is due."""
        if self._resumed is not None:
            restore_random_state(self._resumed["random"])
            # Lightning takes every checkpoint for one written within a step, and counts that step again.
            epoch_loop = trainer.fit_loop.epoch_loop
            epoch_loop._batches_that_stepped = self._resumed["batches_that_stepped"]
            epoch_loop.batch_progress.total.ready = epoch_loop.batch_progress.total.completed + 1
            trainer.fit_loop._restarting = False  # else the schedule does not step at the end of this epoch
            self._resumed = None
        if self.between_steps:
            self._write_due(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note where the loader is: by the quiet moment it has fetched the next batch."""
        self.between_steps = trainer.global_step != self._step  # else gradients are being accumulated
        self._step = trainer.global_step
        self._last_due |= self.between_steps and self._step % self.every_n_steps == 0
        self._loaders = _loader_states(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the score with the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._last_due = True
        if self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = (
                ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val") and "_step_" not in k))
                or "nothing"
            )
            given = f"checkpoint.monitor: {self.monitor!r}"
            raise UserError(f"{given} is not logged in validation; monitor one of those that are: {logged}")
        wrong = None if self.best.validations else contradiction(self.monitor, self.mode)
        if wrong and trainer.is_global_zero:
            _log.warning("checkpoint.mode: %s, as it was given: the worst checkpoint is kept as the best", wrong)
        # Weights that are not finite are not written, so they cannot be the best.
        score = float(trainer.callback_metrics[self.monitor]) if _is_finite(pl_module) else nan
        loss = getattr(pl_module, "tie_breaker", trainer.callback_metrics.get("val/loss", nan))
        self._best_due |= self.best.take(score, float(loss))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint."""
        self.write_last(trainer, ended=True)
        self._seconds_before, self._began = self.seconds, None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a module that is tested as it is, with `max_steps: 0`."""
        if trainer.max_steps == 0:
            self._loaders = _loader_states(trainer)
            self.write_last(trainer)

    def check_scores(self, trainer: Trainer) -> None:
        """Refuse to call a checkpoint the best where no validation had a score.

        Raises:
            NonFiniteLossError: What happened, on every rank.
        """
        if self.best.score is None and self.best.validations:
            last = _folder(trainer) / "last.ckpt"
            kept = f"; the last is kept, {last}" if last.is_file() else ""
            error = NonFiniteLossError(
                f"none of {self.best.validations} validations had a finite {self.monitor} and finite weights, "
                f"so no checkpoint is the best and none was tested{kept}"
            )
            error.on_all_ranks = True
            raise error

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs."""
        if self._quiet is not None:
            checkpoint["quiet_moment"] = self._quiet
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = self._loaders

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Cut `metrics.csv` to the checkpoint, and remember what the first step needs.

        Callbacks come before the loops in reading the checkpoint, so what is changed here is what the loops see.
        """
        if trainer.state.fn != "fit":
            return
        self._resumed = checkpoint.get("quiet_moment")
        if self._resumed is None:
            return
        self._seconds_before = self._resumed["seconds"]
        trainer.should_stop = self._resumed["stopped"]
        logger = run_logger(trainer)
        if logger is not None and not logger.is_new and trainer.is_global_zero:
            logger.cut(self._resumed["rows"], self._resumed.get("columns", ()))
        more_steps = trainer.max_steps == -1 or checkpoint["global_step"] < trainer.max_steps
        goes_on = more_steps and not self._resumed["stopped"]
        if goes_on and self._resumed["batches_of_ended_epoch"] is not None:
            _begin_next_step(checkpoint["loops"]["fit_loop"], self._resumed["batches_of_ended_epoch"])

    def write_last(self, trainer: Trainer, ended: bool = False) -> None:
        """Write the last checkpoint now, on all ranks at once, in a quiet moment: where `between_steps` is true."""
        self._last_due = True
        self._write_due(trainer, ended)

    def _write_due(self, trainer: Trainer, ended: bool = False) -> None:
        if getattr(trainer, "fast_dev_run", False) or not (self._last_due or self._best_due):
            return
        best, last, self._best_due, self._last_due = self._best_due, self._last_due, False, False
        if not _is_finite(trainer.lightning_module):
            return  # the next loss will not be finite, and the last good checkpoint is worth more
        logger = run_logger(trainer)
        if logger is not None:
            logger.flush()
        self._quiet = {
            "rows": logger.rows if logger else 0,
            "columns": logger.columns if logger else [],
            "random": random_state(),
            "seconds": self.seconds,
            "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "batches_of_ended_epoch": trainer.num_training_batches if ended else None,
            "stopped": ended and trainer.should_stop,
        }
        folder = _folder(trainer)
        try:
            # The best goes first: killed between the two, the run repeats the validation and writes it again.
            for due, name in ((best, "best.ckpt"), (last, "last.ckpt")):
                if due:
                    trainer.save_checkpoint(folder / name, weights_only=False)
        finally:
            self._quiet = None

    def _check_best_is_there(self, trainer: Trainer) -> None:
        """Begin anew where a run is resumed whose best checkpoint is lost: its score says nothing of any other."""
        file = _folder(trainer) / "best.ckpt"  # asks the other ranks
        if self.best.score is None:
            return
        lost = damage(file) if trainer.is_global_zero else None
        if trainer.strategy.broadcast(lost) is None:
            return
        if trainer.is_global_zero:
            _log.warning(
                "%s (%s %g) %s: only validations from here on decide which is the best",
                *(file, self.monitor, self.best.score, lost),
            )
        self.best.forget()


def run_logger(trainer: Trainer) -> RunLogger | None:
    """The trainer's `RunLogger`."""
    return next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def _is_finite(module: LightningModule) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in module.parameters())


def _loader_states(trainer: Trainer) -> list[Any]:
    """Where the train loaders are, as Lightning stores it."""
    return copy.deepcopy(trainer.fit_loop.state_dict()["state_dict"].get("combined_loader", []))


def _begin_next_step(fit_loop: dict[str, Any], batches: int | float) -> None:
    """Turn the counters of training that ended into those of training about to go on, so that it can go on.

    Lightning ends an epoch wherever training ends. In the middle of one the epoch is still open; after a full one
    the next has begun.
    """
    epoch, batch = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    for counts in (epoch["total"], epoch["current"]):
        if batch["current"]["completed"] < batches:
            counts["processed"] -= 1
            counts["completed"] -= 1
        else:
            counts["ready"] += 1
            counts["started"] += 1
    if batch["current"]["completed"] >= batches:
        batch["current"] = dict.fromkeys(batch["current"], 0)
    batch["is_last_batch"] = False
    # One more ready than done marks the quiet moment.
    batch["total"]["ready"] += 1
    batch["current"]["ready"] += 1
