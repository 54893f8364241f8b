"""What a module checks when its training is resumed, with or without the command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_meta.configuration import describe, import_class, lies_in, public_path, real_path
from lightning_meta.errors import UserError

WATCHING, LONGEST = "ReduceLROnPlateau", 80
ANEW = "; resume with the same, or start a new run"

_log = logging.getLogger(__name__)


def shown(value: Any) -> str:
    """A value in a message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def same_class(old: Any, new: Any) -> bool:
    """Whether two paths name one class: by another way to it, or of the user's and in a module of another name.

    >>> same_class("lightning_meta.data.sources.Glyphs", "lightning_meta.sources.Glyphs")
    True
    >>> same_class("__main__.Mine", "train.Mine"), same_class("mine.Adam", "torch.optim.Adam")
    (True, False)
    """
    if old == new or not (isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    old, new = _home(old), _home(new)
    of_users = not any(lies_in(path, _KNOWN) for path in (old, new))
    return old == new or (of_users and old.rpartition(".")[2] == new.rpartition(".")[2])


def check_class(module: Any, checkpoint: Mapping[str, Any], file: Any) -> None:
    """Refuse to resume a module from the checkpoint of another class.

    Args:
        module: What is trained.
        checkpoint: As it was read.
        file: Where from, for the error.

    Raises:
        UserError: Both classes, and what to do.
    """
    stored = checkpoint.get("lightning_meta")
    old = stored.get("class_path") if isinstance(stored, Mapping) else None
    new = public_path(type(module))
    if old is not None and not same_class(old, new):
        raise UserError(f"{file} is a checkpoint of {old}, not of {new}{ANEW}")


def check_resumed(module: Any, checkpoint: Mapping[str, Any], file: Any, callbacks: Sequence[Any] = ()) -> None:
    """Refuse to resume a module of another class, or with an optimiser of another class; say which options are lost.

    Args:
        module: What is trained; `describe` knows how it was made.
        checkpoint: As it was read.
        file: Where from, for the error.
        callbacks: The trainer's; one that has `compares_options` sees to the options of the optimiser.

    Raises:
        UserError: Both classes, and what to do.
    """
    stored, own = checkpoint.get("lightning_meta"), describe(module)
    if not isinstance(stored, Mapping) or "class_path" not in stored:
        return
    check_class(module, checkpoint, file)
    for name in ("optimizer", "lr_scheduler"):
        if name not in (stored.get("init_args") or {}):
            continue  # the default, which earlier versions did not name
        old, new = ((spec.get("init_args") or {}).get(name) for spec in (stored, own))
        classes = [spec.get("class_path") for spec in (old, new) if isinstance(spec, Mapping)]
        known = all(classes) and len(classes) == 2  # neither is a function of the user's
        if name == "optimizer" and known and not same_class(*classes):
            raise UserError(f"optimizer: the checkpoint is of {classes[0]}, got {classes[1]}{ANEW}")
        if old != new and not any(getattr(callback, "compares_options", False) for callback in callbacks):
            _log.warning(
                "%s: the checkpoint's options are used, %s, and not %s, as Lightning restores them; set them in "
                "on_train_start to change them",
                *(name, shown(old), shown(new)),
            )


def check_groups(optimizers: Sequence[Optimizer], states: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the state of optimisers that cannot have been these, however they were made.

    Args:
        optimizers: As the module makes them.
        states: As a checkpoint holds them.

    Raises:
        UserError: What differs, and what to do.
    """
    if len(optimizers) != len(states):
        raise UserError(
            f"optimizer: the checkpoint holds the state of {len(states)}, the module has {len(optimizers)}{ANEW}"
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        groups, saved = optimizer.param_groups, state.get("param_groups") or []
        if len(groups) != len(saved):
            raise UserError(
                f"optimizer: the checkpoint has {len(saved)} groups of parameters, the module {len(groups)}{ANEW}"
            )
        lacking = sorted(optimizer.defaults.keys() - saved[0].keys()) if saved else []
        others = sorted(saved[0].keys() - groups[0].keys() - _OF_SCHEDULES) if saved else []
        if lacking and others:  # torch fills in what a later version of a class has added
            raise UserError(
                f"optimizer: the checkpoint is of another class, with {', '.join(others)} and without "
                f"{', '.join(lacking)} of {type(optimizer).__name__}{ANEW}"
            )


_OF_SCHEDULES = {"initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum", "param_names"}
_KNOWN = ("lightning_meta", "torch.nn", "torch.optim")


def _home(path: str) -> str:
    """Where a class lies, whichever way its path takes."""
    path = real_path(path)
    if not lies_in(path, _KNOWN):  # importing runs what a stranger's file names
        return path
    try:
        cls = import_class(path)
    except UserError:
        return path
    return f"{cls.__module__}.{cls.__qualname__}"


def first_weights_of(cls: type) -> set[str]:
    """The arguments that only set the first weights of a module; see `TrainedModule`."""
    return {name for base in cls.__mro__ for name in vars(base).get("sets_first_weights", ())}
