"""The best and the last checkpoint of a run, from which training resumes bit for bit."""

from __future__ import annotations

import copy
import logging
import time
from math import nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_meta.checks import instance, whole
from lightning_meta.errors import NonFiniteLossError, UserError, one_of
from lightning_meta.modes import Mode, contradiction, mode_of
from lightning_meta.run.intact import damage
from lightning_meta.run.logger import RunLogger
from lightning_meta.run.monitors import BestScore, check_logged, check_modes, check_scores_exist
from lightning_meta.run.progress import random_state, restore_random_state

_STEPPED = "_batches_that_stepped"  # in the state of Lightning's loop, which has no other way to ask for the count

_log = logging.getLogger(__name__)


class RunCheckpoint(Callback):
    """Keeps `checkpoints/best.ckpt`, by a validation metric, and `checkpoints/last.ckpt`.

    A checkpoint is written between two training steps, when the next one is about to begin: validation, the end of the
    epoch and the row in `metrics.csv` of the previous step are then complete. A run resumed from either file gives
    results that are bit-for-bit identical to those of an uninterrupted run, if the train loader has `state_dict` and
    `load_state_dict`.

    It must come before callbacks that log when a step begins, such as `LearningRateMonitor`: their values belong to the
    next step, and would otherwise be among the rows of `metrics.csv` that the checkpoint of the previous step counts.
    Callbacks that log nothing may precede it, and `RunRecord` must.

    Args:
        monitor: The validation metric that decides which checkpoint is the best. NaN is never the best; ties are broken
            by the lower `val/loss`, then by the earlier step. With None, only the last checkpoint is kept.
        mode: Whether the metric is to be maximised ("max") or minimised ("min"); by default this follows from its name:
            losses and errors are minimised.
        every_n_steps: Number of training steps between two writes of the last checkpoint. It is also written before the
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
        # Additional state for the checkpoint that is being written between two steps; None otherwise.
        self._state_between_steps: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Seconds spent in training, those before a resume included."""
        return self._seconds_before + (0 if self._began is None else time.monotonic() - self._began)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return self.best.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse callbacks whose mode contradicts their metric, and reset the state of an earlier run."""
        if stage != "fit":
            return
        check_modes(trainer, pl_module, self.monitor, self.mode)
        if trainer.global_step == 0:  # what a run to resume holds is read after this
            self.best, self._seconds_before = BestScore(self.mode), 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to monitor a score that no validation can have; the schedules exist only now."""
        check_scores_exist(trainer, pl_module, self.monitor)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and initialise the state between two steps."""
        self._check_best_is_there(trainer)
        self._began = time.monotonic()
        self._step, self.between_steps = trainer.global_step, True
        self._last_due = self._resumed is None  # a resumed run has the checkpoint that it starts from
        self._loaders = _loader_states(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the state of a resumed run, or write the checkpoints that are due."""
        if self._resumed is not None:
            states = self._resumed["random"]
            if len(states) == trainer.world_size:  # else there is no rank whose stream could be continued
                restore_random_state(states[trainer.global_rank])
            # Lightning takes every checkpoint for one written within a step, and counts that step again.
            epoch_loop = trainer.fit_loop.epoch_loop
            epoch_loop.on_load_checkpoint({_STEPPED: self._resumed["batches_that_stepped"]})
            epoch_loop.batch_progress.total.ready = epoch_loop.batch_progress.total.completed + 1
            trainer.fit_loop.on_iteration_done()  # else the schedule does not step at the end of this epoch
            self._resumed = None
        if self.between_steps:
            self._write_due(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Store the position of the loader: before the next step it will have fetched the next batch."""
        self.between_steps = trainer.global_step != self._step  # else gradients are being accumulated
        self._step = trainer.global_step
        self._last_due |= self.between_steps and self._step % self.every_n_steps == 0
        self._loaders = _loader_states(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the score with the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        check_logged(trainer, self.monitor)
        self._last_due = True
        if self.monitor is None:
            return
        wrong = contradiction(self.monitor, self.mode)
        if wrong and not self.best.validations and trainer.is_global_zero:
            _log.warning("checkpoint.mode: %s, as configured: the worst checkpoint is kept as the best", wrong)
        # Weights that are not finite are not written, so they cannot be the best.
        score = float(trainer.callback_metrics[self.monitor]) if _is_finite(pl_module) else nan
        loss = getattr(pl_module, "tie_breaker", trainer.callback_metrics.get("val/loss", nan))
        self._best_due |= self.best.take(score, float(loss))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint."""
        self.write_last(trainer, ended=True)
        self._seconds_before, self._began = self.seconds, None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a module that is tested without training, with `max_steps: 0`."""
        if trainer.max_steps == 0:
            self._loaders = _loader_states(trainer)
            self.write_last(trainer)

    def check_scores(self, trainer: Trainer) -> None:
        """Refuse to choose a best checkpoint if no validation had a finite score, on every rank."""
        if self.best.score is None and self.best.validations:
            last = _folder(trainer) / "last.ckpt"
            kept = f"; the last checkpoint is {last}" if last.is_file() else ""
            error = NonFiniteLossError(
                f"none of {self.best.validations} validations had a finite {self.monitor} and finite weights, "
                f"so there is no best checkpoint and none was tested{kept}"
            )
            error.on_all_ranks = True
            raise error

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state that a resumed run needs."""
        if self._state_between_steps is not None:
            checkpoint["quiet_moment"] = self._state_between_steps
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = self._loaders

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Truncate `metrics.csv` to the checkpoint, keep the state that the first step needs, and change the loops'."""
        if trainer.state.fn != "fit":
            # In the Trainer that trained, `WeightAveraging` would replace the stored averages by the weights that it
            # stores under this name to resume from.
            if "current_model_state" in checkpoint:
                checkpoint["current_model_state"] = checkpoint["state_dict"]
            return
        self._resumed = checkpoint.get("quiet_moment")
        if self._resumed is None:
            return
        self._seconds_before = self._resumed["seconds"]
        trainer.should_stop = self._resumed["stopped"]
        logger = run_logger(trainer)
        if logger is not None and not logger.is_new and trainer.is_global_zero:
            logger.cut(self._resumed["rows"], self._resumed["columns"])
        more_steps = trainer.max_steps == -1 or checkpoint["global_step"] < trainer.max_steps
        batches = self._resumed["batches_of_ended_epoch"]
        if more_steps and not self._resumed["stopped"] and batches is not None:
            _begin_next_step(checkpoint["loops"]["fit_loop"], batches)

    def write_last(self, trainer: Trainer, ended: bool = False) -> None:
        """Write the last checkpoint now; call it on all ranks, and only while `between_steps` is true."""
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
        self._state_between_steps = {
            "rows": logger.rows if logger else 0,
            "columns": list(logger.columns) if logger else [],
            "random": _random_states(trainer),
            "seconds": self.seconds,
            "batches_that_stepped": logged_step(trainer),
            "batches_of_ended_epoch": trainer.num_training_batches if ended else None,
            "stopped": ended and trainer.should_stop,
        }
        try:
            # The best goes first: killed between the two, the run repeats the validation and writes it again.
            for due, name in ((best, "best.ckpt"), (last, "last.ckpt")):
                if due:
                    trainer.save_checkpoint(_folder(trainer) / name, weights_only=False)
        finally:
            self._state_between_steps = None

    def _check_best_is_there(self, trainer: Trainer) -> None:
        """Forget the best score of a resumed run if its best checkpoint is lost or damaged."""
        file = _folder(trainer) / "best.ckpt"  # asks the other ranks
        lost = trainer.strategy.broadcast(damage(file) if trainer.is_global_zero else None)
        if self.best.score is not None and lost is not None:
            if trainer.is_global_zero:
                _log.warning(
                    "%s (%s %g) %s: the best checkpoint will be chosen from the validations after this step",
                    *(file, self.monitor, self.best.score, lost),
                )
            self.best = BestScore(self.mode)


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs: the number of training batches that ended with an optimiser step."""
    return int(trainer.fit_loop.epoch_loop.on_save_checkpoint()[_STEPPED])


def run_logger(trainer: Trainer) -> RunLogger | None:
    """The trainer's `RunLogger`."""
    return next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)


def _random_states(trainer: Trainer) -> list[Any]:
    """The states of the generators of every rank."""
    states: list[Any] = [random_state()] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, states[0])
    return states


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def _is_finite(module: LightningModule) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in module.parameters())


def _loader_states(trainer: Trainer) -> list[Any]:
    """Where the train loaders are, as Lightning stores it."""
    return copy.deepcopy(trainer.fit_loop.state_dict()["state_dict"].get("combined_loader", []))


def _begin_next_step(fit_loop: dict[str, Any], batches: int | float) -> None:
    """Change the counters of finished training to those before another step, so that training can resume.

    Lightning ends the epoch when training ends. In the middle of an epoch, it must be open again; after a complete
    epoch, the next one must have begun.
    """
    epoch, batch = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    is_open = batch["current"]["completed"] < batches
    for counts in (epoch["total"], epoch["current"]):
        for name in ("processed", "completed") if is_open else ("ready", "started"):
            counts[name] += -1 if is_open else 1
    if not is_open:
        batch["current"] = dict.fromkeys(batch["current"], 0)
    batch["is_last_batch"] = False
    # One more ready than done marks the quiet moment.
    batch["total"]["ready"] += 1
    batch["current"]["ready"] += 1
