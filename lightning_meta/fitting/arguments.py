"""Type checks for the arguments of `lightning_meta.fit`, which, unlike those of the command, no parser has checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from lightning_meta.checks import instance, switch
from lightning_meta.errors import UserError
from lightning_meta.fitting.checks import LEAST, WITHOUT_END, as_list
from lightning_meta.run.checkpoints import RunCheckpoint

COUNTS = {name for name in LEAST if name not in ("gradient_clip_val", "fast_dev_run")}


def check_arguments(
    name: Any, runs: Any, resume: Any, allow_changes: Any, checkpoint: Any, callbacks: Any, logger: Any
) -> None:
    """Refuse arguments of the wrong type.

    Args:
        name: Name of the run, a string or None.
        runs: Folder of all runs, a path.
        resume: Checkpoint or run directory to resume, a path or None.
        allow_changes: Whether changed options are accepted, a bool.
        checkpoint: A `RunCheckpoint` or None.
        callbacks: A callback, a list or tuple of them, or None.
        logger: A logger, a list or tuple of them, or None.

    Raises:
        UserError: An argument has the wrong type.
    """
    if name is not None:
        instance("name", name, str)
    instance("runs", runs, (str, os.PathLike))
    if resume is not None:
        instance("resume", resume, (str, os.PathLike))
    switch(allow_changes=allow_changes)
    if checkpoint is not None and not isinstance(checkpoint, RunCheckpoint):
        raise UserError(
            f"checkpoint: a RunCheckpoint is needed, such as RunCheckpoint(monitor='val/loss'), got {_said(checkpoint)}"
        )
    for argument, value, kind in (("callbacks", callbacks, Callback), ("logger", logger, Logger)):
        for item in [value] if isinstance(value, bool) else as_list(value):
            instance(argument, item, kind)


def check_counts(trainer: Mapping[str, Any]) -> None:
    """Refuse counts of the Trainer that are not whole numbers.

    Args:
        trainer: Arguments of `lightning.pytorch.Trainer` by name.

    Raises:
        UserError: A count is not a whole number.
    """
    for name in COUNTS & set(trainer):
        value = trainer[name]
        optional = value is None and name != "max_steps"
        if not optional and (isinstance(value, bool) or not isinstance(value, Integral)):
            without_end = ", or -1 for no limit" if name in WITHOUT_END else ""
            raise UserError(f"{name}: a whole number is needed{without_end}, got {_said(value)}")


def _said(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:80]!r}" if value is not None else "None"
