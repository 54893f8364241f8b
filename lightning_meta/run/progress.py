"""Checks of the training state in a checkpoint, before a run is resumed from it."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_meta.errors import UserError, reason_of
from lightning_meta.resuming import are_optimizer_states

LARGEST = 2**62
_COUNTERS = ("ready", "started", "processed", "completed", "global_step", "epoch", "rows", "batches_that_stepped")
_PARTS: dict[str, Callable[[Any], bool]] = {
    "loops": lambda value: isinstance(value, dict),
    "callbacks": lambda value: isinstance(value, dict),
    "optimizer_states": are_optimizer_states,
    "lr_schedulers": lambda value: isinstance(value, list) and all(isinstance(state, dict) for state in value),
}
_OPTIM = str(Path("torch", "optim")) + "/"
_SCHEDULES = _OPTIM + "lr_scheduler"


def check_progress(checkpoint: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Check the counters and the states of random number generators in a checkpoint.

    Args:
        checkpoint: The checkpoint, with the entries of Lightning and `RunCheckpoint`.
        path: Path of the checkpoint, for the error.

    Raises:
        UserError: An entry is invalid.
    """
    for part, is_sound in _PARTS.items():
        if not is_sound(checkpoint.get(part)):
            raise UserError(
                f"{path} cannot be resumed: it holds no {part}, or damaged ones; its weights load with "
                "lightning_meta.load"
            )
    moment = checkpoint.get("quiet_moment")
    waiting: list[tuple[Any, Any]] = [
        *((key, checkpoint.get(key)) for key in ("global_step", "epoch")),
        *_items(checkpoint["loops"]),
        *_items(moment),
    ]
    while waiting:
        key, value = waiting.pop()
        if key in _COUNTERS and not (type(value) is int and 0 <= value < LARGEST):
            raise UserError(f"{path} cannot be resumed: its {key} is {str(value)[:50]}, and should be a whole number")
        if key not in ("random", "combined_loader"):  # states are tested below; that of a loader can be anything
            waiting += _items(value)
    if moment is None:
        return
    try:
        for state in moment["random"]:
            _try_out(state)
        seconds, stopped = moment["seconds"], moment["stopped"]
        if not (0 <= float(seconds) < LARGEST) or not isinstance(stopped, bool):
            raise ValueError
        batches = [moment["rows"], moment["batches_that_stepped"], moment["batches_of_ended_epoch"] or 0]
        if not all(type(count) is int for count in batches):
            raise TypeError
        if not all(isinstance(name, str) for name in moment.get("columns", ())):
            raise TypeError
    except Exception as error:  # each generator raises other errors
        raise UserError(f"{path} cannot be resumed: its training state is damaged") from error


def restoring_error(error: BaseException, path: str | PathLike[str] | None) -> UserError | None:
    """Turn an error from restoring a state that does not fit into one line; None for other errors.

    Args:
        error: The error of training.
        path: The checkpoint that was resumed; None for a new run.
    """
    frames = traceback.extract_tb(error.__traceback__)
    restoring = any(_restores(frame) for frame in frames)
    # An optimiser uses its restored state in its step, and Lightning runs the training step inside it, as closure.
    training = any(frame.name in ("closure", "training_step") for frame in frames)
    restoring |= not training and any(_OPTIM in frame.filename for frame in frames)
    if path is None or not restoring or isinstance(error, UserError | OSError | torch.OutOfMemoryError):
        return None
    reason = reason_of(error, 200)
    return UserError(
        f"{path} cannot be resumed: what it holds does not fit this run ({type(error).__name__}: {reason}); load its "
        f"weights with lightning_meta.load, or resume the run it belongs to"
    )


def is_of_schedule(error: BaseException) -> bool:
    """Whether torch's own schedule of learning rates failed on its restored state, which it uses only after a step.

    A `ValueError` is what a schedule says of a run that is longer than the schedule.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _SCHEDULES in frames[-1].filename and not isinstance(error, ValueError)


def _restores(frame: traceback.FrameSummary) -> bool:
    if frame.filename.endswith("checkpoint_connector.py"):  # this file also writes checkpoints
        return "restore" in frame.name
    return frame.name == "restore_random_state"


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _try_out(state: Mapping[str, Any]) -> None:
    random.Random().setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    if not 0 <= position <= len(keys):  # numpy would read out of bounds
        raise ValueError
    np.random.RandomState().set_state((name, keys, position, has_gauss, gauss))
    torch.Generator().set_state(state["torch"])
    if not (state["cuda"] is None or isinstance(state["cuda"], torch.Tensor)):
        raise ValueError
