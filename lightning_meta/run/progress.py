"""The training state in a checkpoint: random number generators, and checks before and while a run is resumed."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_meta.errors import UserError, reason_of
from lightning_meta.resuming import are_optimizer_states

LARGEST = 2**62
_COUNTERS = ("ready", "started", "processed", "completed", "global_step", "epoch")
_OPTIM = str(Path("torch", "optim")) + "/"
_SCHEDULES = _OPTIM + "lr_scheduler"


def random_state() -> dict[str, Any]:
    """The state of the generators of Python, NumPy, torch and its accelerators, as plain data."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, list(map(int, keys)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore the state of the generators."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def check_progress(checkpoint: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Refuse a checkpoint with invalid counters or states of Lightning and `RunCheckpoint`."""
    try:
        is_sound = _is_sound(checkpoint)
    except Exception:  # of a damaged state, each part raises other errors
        is_sound = False
    if not is_sound:
        raise UserError(
            f"{path} cannot be resumed: its training state is missing or damaged; its weights load with "
            "lightning_meta.load"
        )


def _is_sound(checkpoint: Mapping[str, Any]) -> bool:
    schedules, moment = checkpoint["lr_schedulers"], checkpoint.get("quiet_moment")
    dictionaries = [checkpoint["loops"], checkpoint["callbacks"], *schedules]
    counts = [checkpoint["global_step"], checkpoint["epoch"], *_counters(checkpoint["loops"])]
    is_sound = isinstance(schedules, list) and all(isinstance(part, dict) for part in dictionaries)
    is_sound &= are_optimizer_states(checkpoint["optimizer_states"])
    if moment is not None:  # a plain Trainer writes none
        counts += [moment["rows"], moment["batches_that_stepped"]]
        batches = moment["batches_of_ended_epoch"] or 0  # infinite for data without a length
        is_sound &= all(type(x) in (int, float) and x >= 0 for x in (batches, moment["seconds"]))
        is_sound &= moment["seconds"] < LARGEST and isinstance(moment["stopped"], bool)
        is_sound &= all(isinstance(name, str) for name in moment["columns"])
        for state in moment["random"]:
            _try_out(state)
    return is_sound and all(type(count) is int and 0 <= count < LARGEST for count in counts)


def _counters(part: Any) -> Iterator[Any]:
    items: Any = enumerate(part) if isinstance(part, list | tuple) else ()
    for key, value in part.items() if isinstance(part, Mapping) else items:
        if key in _COUNTERS:
            yield value
        if key != "combined_loader":  # the state of a loader can be anything
            yield from _counters(value)


def _try_out(state: Mapping[str, Any]) -> None:
    random.Random().setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    if not 0 <= position <= len(keys):  # numpy would read out of bounds
        raise ValueError
    np.random.RandomState().set_state((name, keys, position, has_gauss, gauss))
    torch.Generator().set_state(state["torch"])
    if not (state["cuda"] is None or isinstance(state["cuda"], torch.Tensor)):
        raise ValueError


def restoring_error(error: BaseException, path: str | PathLike[str]) -> UserError | None:
    """Turn an error from restoring a state that does not fit into one line; None for other errors of training."""
    frames = traceback.extract_tb(error.__traceback__)
    restoring = any(_restores(frame) for frame in frames)
    # An optimiser uses its restored state in its step, and Lightning runs the training step inside it, as closure.
    training = any(frame.name in ("closure", "training_step") for frame in frames)
    restoring |= not training and any(_OPTIM in frame.filename for frame in frames)
    if not restoring or isinstance(error, UserError | OSError | torch.OutOfMemoryError):
        return None
    reason = reason_of(error, 200)
    return UserError(
        f"{path} cannot be resumed: what it holds does not fit this run ({type(error).__name__}: {reason}); load its "
        f"weights with lightning_meta.load, resume the run it belongs to, or start a new run"
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
