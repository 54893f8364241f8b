"""What a checkpoint says of how far training was, before a run takes it up."""

from __future__ import annotations

import random
import traceback
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_meta.errors import UserError

LARGEST = 2**62
_COUNTERS = ("ready", "started", "processed", "completed", "global_step", "epoch", "rows", "batches_that_stepped")
_PARTS = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list}
_OPTIM = str(Path("torch", "optim")) + "/"


def check_progress(checkpoint: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Refuse counters that are none, and states that no random number generator can be in.

    Args:
        checkpoint: With whatever Lightning and `RunCheckpoint` have put in.
        path: The file, for the error.

    Raises:
        UserError: The first that is wrong.
    """
    for part, kind in _PARTS.items():
        value = checkpoint.get(part)
        if not isinstance(value, kind) or (kind is list and not _are_states(value, part)):
            raise UserError(
                f"{path} cannot be resumed: it holds no {part}, or damaged ones; its weights load with "
                "lightning_meta.load"
            )
    moment = checkpoint.get("quiet_moment")
    waiting: list[tuple[Any, Any]] = [
        *((key, checkpoint.get(key)) for key in ("global_step", "epoch")),
        *(_items(checkpoint.get("loops") or {})),
        *(_items(moment or {})),
    ]
    while waiting:
        key, value = waiting.pop()
        if key in _COUNTERS and not (type(value) is int and 0 <= value < LARGEST):
            raise UserError(f"{path} cannot be resumed: its {key} is {str(value)[:50]}, and should be a whole number")
        if key not in ("random", "combined_loader"):  # tried out below; of a loader that may be anything
            waiting += _items(value)
    if moment is None:
        return
    try:
        for state in moment["random"]:
            _try_out(state)
        seconds, stopped = moment["seconds"], moment["stopped"]
        if not (0 <= float(seconds) < LARGEST) or not isinstance(stopped, bool):
            raise ValueError
    except Exception as error:  # each generator raises its own
        raise UserError(
            f"{path} cannot be resumed: what it says of the moment when it was written is damaged"
        ) from error


def restoring_error(error: BaseException, path: str | PathLike[str] | None) -> UserError | None:
    """What a state that does not fit has led to, in one line; None for errors of other origin.

    Args:
        error: Raised by training.
        path: What it resumed from; None where it did not.
    """
    frames = traceback.extract_tb(error.__traceback__)
    restoring = any(_restores(frame) for frame in frames)
    # The optimiser itself takes up its state in a step, within which Lightning trains, by its closure.
    training = any(frame.name in ("closure", "training_step") for frame in frames)
    restoring |= not training and any(_OPTIM in frame.filename for frame in frames)
    if path is None or not restoring or isinstance(error, UserError | OSError | torch.OutOfMemoryError):
        return None
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"{path} cannot be resumed: what it holds does not fit this run ({type(error).__name__}: {reason}); load its "
        f"weights with lightning_meta.load, or resume the run that it is of"
    )


def _restores(frame: traceback.FrameSummary) -> bool:
    if frame.filename.endswith("checkpoint_connector.py"):  # which also writes checkpoints
        return "restore" in frame.name
    return frame.name == "restore_random_state"


def _are_states(value: list[Any], part: str) -> bool:
    """Whether these are states of optimisers, which say the options of their parameters, or of schedules."""
    groups = [state.get("param_groups") if isinstance(state, dict) else None for state in value]
    if part == "optimizer_states" and not all(isinstance(group, list) for group in groups):
        return False
    options = [options for group in groups for options in group or ()]
    return all(isinstance(state, dict) for state in [*value, *options])


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _try_out(state: Mapping[str, Any]) -> None:
    random.Random().setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    if not 0 <= position <= len(keys):  # numpy would read beyond
        raise ValueError
    np.random.RandomState().set_state((name, keys, position, has_gauss, gauss))
    torch.Generator().set_state(state["torch"])
    if not (state["cuda"] is None or isinstance(state["cuda"], torch.Tensor)):
        raise ValueError
