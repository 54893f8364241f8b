"""What other callbacks follow a metric, and whether they follow it the right way round."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_meta.modes import check_mode


def check_monitors(trainer: Trainer) -> None:
    """Refuse Lightning's callbacks that take a bad value of a metric for a good one; their default mode is "min".

    Raises:
        UserError: The callback, the metric and the mode that it needs.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None:
            check_mode(type(callback).__name__, callback.monitor, callback.mode)
