"""The metrics that a run's checkpoint, callbacks and schedules monitor: their checks, and the best score so far."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.undefined_scores import without_score
from lightning_meta.errors import UserError, some_of
from lightning_meta.modes import Mode, check_mode


class BestScore:
    """The best validation so far: ties in the score go to the lower loss, then to the earlier validation.

    NaN and the worst possible infinite score are never the best.

    Args:
        mode: "max" if larger scores are better, "min" if smaller ones are.

    Attributes:
        score: The best score; None if there is none yet.
        loss: Loss of the same validation; infinite if none was logged.
        validations: Number of validations, including those without a finite score.
    """

    def __init__(self, mode: Mode) -> None:
        self._sign = 1 if mode == "max" else -1
        self.score: float | None = None
        self.loss, self.validations = math.inf, 0

    def take(self, score: float, loss: float = math.inf) -> bool:
        """Add a validation, and return whether it is the best so far.

        Args:
            score: Score of the validation.
            loss: Loss of the validation, which breaks ties; NaN counts as infinity.
        """
        self.validations += 1
        loss = math.inf if math.isnan(loss) else loss
        signed = self._sign * score
        best = -math.inf if self.score is None else self._sign * self.score
        is_best = signed > best or (signed == best > -math.inf and loss < self.loss)
        if is_best:
            self.score, self.loss = score, loss
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"best_score": self.score, "best_loss": self.loss, "validations": self.validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint, which may be damaged."""
        score = state["best_score"]
        self.score = None if score is None or math.isnan(score) else float(score)
        self.loss, self.validations = float(state["best_loss"]), int(state["validations"])


def check_modes(trainer: Trainer, module: LightningModule, monitor: str | None, mode: Mode) -> None:
    """Refuse modes of callbacks, whose default is "min", and of the best checkpoint that contradict their metrics."""
    for callback in _monitoring(trainer):
        check_mode(type(callback).__name__, str(callback.monitor), callback.mode)
    modes: dict[str, str] = getattr(module, "metric_modes", dict)()
    needed = modes.get((monitor or "").partition("/")[2].partition("/")[0], mode)
    if needed != mode:
        good = "large" if needed == "max" else "small"
        raise UserError(f"checkpoint.mode: {monitor} is good where it is {good}, got {mode}; give mode: {needed}")


def check_scores_exist(trainer: Trainer, module: LightningModule, monitor: str | None) -> None:
    """Refuse to monitor the accuracy of few-shot regression, or a score of tasks with equal validation labels."""
    episodes: Any = getattr(module, "episodes", None)  # of a meta-learner
    if monitor == "val/accuracy" and trainer.max_steps and getattr(episodes, "task", "") == "regression":
        task: Any = module.task
        if task.metric != "accuracy":
            raise UserError(
                f"checkpoint.monitor: {monitor!r} is not logged in validation, as the tasks are regression tasks; "
                f"monitor val/{task.metric} or val/loss"
            )
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, MultiTaskDataModule) or data.spec is None:
        return
    for whose, monitored in _monitors(trainer, monitor):
        names = without_score(monitored, data.spec.tasks, data.undefined_scores.get("val", {}))
        if names:
            raise UserError(
                f"{whose}: {monitored} is undefined, as the validation rows of {some_of(map(repr, names), 5)} "
                "have a target with a single label or number; use more data or another division, or monitor val/loss"
            )


def check_logged(trainer: Trainer, monitor: str | None) -> None:
    """Refuse to monitor a validation metric that the model has not logged in validation.

    Lightning would do so only after the first checkpoint, with a different error for each callback, or not at all.
    Metrics whose names do not start with `val` may be logged after validation; of these only `monitor` is checked.
    """
    for whose, monitored in _monitors(trainer, monitor):
        of_validation = monitored == monitor or re.match(r"val(id(ation)?)?([/_]|$)", monitored)
        if of_validation and monitored not in trainer.callback_metrics:
            names = sorted(k for k in trainer.callback_metrics if k.startswith("val") and "_step_" not in k)
            raise UserError(
                f"{whose}: {monitored!r} is not logged in validation; monitor one of the logged metrics: "
                f"{', '.join(names) or 'nothing'}"
            )


def _monitoring(trainer: Trainer) -> list[EarlyStopping | ModelCheckpoint]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, EarlyStopping | ModelCheckpoint) and c.monitor is not None]


def _monitors(trainer: Trainer, monitor: str | None) -> Iterator[tuple[str, str]]:
    """Who monitors a metric, and its name."""
    for callback in _monitoring(trainer):
        if getattr(callback, "strict", True):
            yield f"trainer.callbacks: {type(callback).__name__}", str(callback.monitor)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.strict:
            yield "model.lr_scheduler", str(config.monitor or "")
    if monitor is not None:
        yield "checkpoint.monitor", monitor
