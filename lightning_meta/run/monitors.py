"""Checks of the metrics that callbacks and schedules monitor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.undefined_scores import without_score
from lightning_meta.errors import UserError, some_of
from lightning_meta.modes import check_mode


def check_modes(trainer: Trainer) -> None:
    """Refuse Lightning's callbacks whose mode contradicts their metric; their default mode is "min".

    Raises:
        UserError: A callback has the wrong mode; the message names the callback, the metric and the right mode.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None:
            check_mode(type(callback).__name__, callback.monitor, callback.mode)


def check_task_mode(module: LightningModule, monitor: str, mode: str) -> None:
    """Refuse a mode that contradicts a metric of a multi-task module.

    Raises:
        UserError: The mode is wrong; the message names the metric and the right mode.
    """
    modes: dict[str, str] = getattr(module, "metric_modes", dict)()
    needed = modes.get(monitor.partition("/")[2].partition("/")[0], mode)
    if needed != mode:
        good = "large" if needed == "max" else "small"
        raise UserError(f"checkpoint.mode: {monitor} is good where it is {good}, got {mode}; give mode: {needed}")


def check_regression(module: LightningModule, monitor: str | None) -> None:
    """Refuse to monitor the accuracy of few-shot regression, the default of `RunCheckpoint`, before the first step.

    Raises:
        UserError: The accuracy is monitored; the message names the metric of the task.
    """
    episodes: Any = getattr(module, "episodes", None)  # of a meta-learner
    if monitor == "val/accuracy" and episodes is not None and episodes.task == "regression":
        task: Any = module.task
        metric = task.metric
        if metric != "accuracy":
            raise UserError(
                f"checkpoint.monitor: {monitor!r} is not logged in validation, as the tasks are regression tasks; "
                f"monitor val/{metric} or val/loss"
            )


class MonitorCheck(Callback):
    """Refuses callbacks and schedules that monitor a validation metric which the model does not log.

    Lightning would do so only after the first checkpoint, with a different error for each callback, or not at all.
    Metrics whose names do not start with `val` may be logged after validation and are not checked.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check every monitor in the first validation.

        Raises:
            UserError: A metric is not logged; the message names its callback and the logged metrics.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for whose, monitor in _monitors(trainer):
            if re.match(r"val(id(ation)?)?([/_]|$)", monitor) and monitor not in trainer.callback_metrics:
                logged = logged_in_validation(trainer)
                raise UserError(f"{whose}: monitor {monitor!r} is not logged in validation; logged: {logged}")


def logged_in_validation(trainer: Trainer) -> str:
    """Names of the validation metrics logged so far, for messages."""
    return (
        ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val") and "_step_" not in k)) or "nothing"
    )


def _monitors(trainer: Trainer) -> Iterator[tuple[str, str]]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        known = type(callback).__module__.startswith("lightning.") or isinstance(
            callback, EarlyStopping | ModelCheckpoint
        )
        if known and getattr(callback, "strict", True):
            yield f"trainer.callbacks: {type(callback).__name__}", str(getattr(callback, "monitor", None) or "")
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.strict:
            yield "model.lr_scheduler", str(config.monitor or "")


def check_defined(trainer: Trainer, monitor: str | None) -> None:
    """Refuse to monitor a score that no validation can have.

    Args:
        trainer: The Trainer, with its callbacks and schedules.
        monitor: The metric that decides which checkpoint of the run is the best.

    Raises:
        UserError: All validation labels of each of its tasks are equal.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, MultiTaskDataModule) or data.spec is None:
        return
    for whose, monitored in [("checkpoint.monitor", monitor or ""), *_monitors(trainer)]:
        names = without_score(monitored, data.spec.tasks, data.undefined_scores.get("val", {}))
        if names:
            raise UserError(
                f"{whose}: {monitored} is undefined, as the validation rows of {some_of(map(repr, names), 5)} "
                "have a target with a single label or number; use more data or another division, or monitor val/loss"
            )
