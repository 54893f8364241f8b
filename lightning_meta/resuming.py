"""Checks of a module when its training is resumed, with or without the command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_class, lies_in, public_path, real_path

WATCHING, LONGEST = "ReduceLROnPlateau", 80
ANEW = "; resume with the same, or start a new run"

_log = logging.getLogger(__name__)


def shown(value: Any) -> str:
    """Shorten a value for a message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def same_class(old: Any, new: Any) -> bool:
    """Whether two paths name the same class; classes of the user may be in modules of different names.

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
        module: The module to train.
        checkpoint: Content of the checkpoint.
        file: Path of the checkpoint, for the error.

    Raises:
        UserError: The classes differ.
    """
    stored = checkpoint.get("lightning_meta")
    old = stored.get("class_path") if isinstance(stored, Mapping) else None
    new = public_path(type(module))
    if old is not None and not same_class(old, new):
        raise UserError(f"{file} is a checkpoint of {old}, not of {new}{ANEW}")


def check_resumed(module: Any, checkpoint: Mapping[str, Any], file: Any, callbacks: Sequence[Any] = ()) -> None:
    """Refuse to resume with a module or optimiser of another class, and warn about options that are ignored.

    Args:
        module: The module to train, whose arguments `describe` returns.
        checkpoint: Content of the checkpoint.
        file: Path of the checkpoint, for the error.
        callbacks: Callbacks of the Trainer; one with `compares_options` handles the options of the optimiser.

    Raises:
        UserError: The classes differ.
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
        known = all(classes) and len(classes) == 2  # neither is a custom function
        if name == "optimizer" and known and not same_class(*classes):
            raise UserError(f"optimizer: the checkpoint was written with {classes[0]}, got {classes[1]}{ANEW}")
        if old != new and not any(getattr(callback, "compares_options", False) for callback in callbacks):
            _log.warning(
                "%s: Lightning restores the options of the checkpoint, %s, and ignores %s; to change them, set them in "
                "on_train_start",
                *(name, shown(old), shown(new)),
            )


def check_groups(optimizers: Sequence[Optimizer], states: Sequence[Mapping[str, Any]]) -> None:
    """Refuse optimiser states that cannot belong to these optimisers.

    Args:
        optimizers: The optimisers of the module.
        states: States of the optimisers in the checkpoint.

    Raises:
        UserError: The number of optimisers, their parameter groups or their class differ, or the states are damaged.
    """
    if not are_optimizer_states(states):
        raise UserError(f"optimizer: the states of optimizers in the checkpoint are damaged{ANEW}")
    if len(optimizers) != len(states):
        raise UserError(
            f"optimizer: the checkpoint has {len(states)} optimizers, the module has {len(optimizers)}{ANEW}"
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        groups, saved = optimizer.param_groups, state["param_groups"]
        if len(groups) != len(saved):
            raise UserError(
                f"optimizer: the checkpoint has {len(saved)} parameter groups, the module has {len(groups)}{ANEW}"
            )
        sizes, saved_sizes = ([len(group["params"]) for group in of] for of in (groups, saved))
        if sizes != saved_sizes:
            raise UserError(
                f"optimizer: the parameter groups of the checkpoint have {saved_sizes} parameters, those of the module "
                f"{sizes}{ANEW}"
            )
        lacking = sorted(optimizer.defaults.keys() - saved[0].keys()) if saved else []
        others = sorted(saved[0].keys() - groups[0].keys() - _OF_SCHEDULES) if saved else []
        if lacking and others:  # torch fills in what a later version of a class has added
            raise UserError(
                f"optimizer: the checkpoint was written with another class, with {', '.join(others)} and without "
                f"{', '.join(lacking)} of {type(optimizer).__name__}{ANEW}"
            )


def are_optimizer_states(value: Any) -> bool:
    """Whether a value from a checkpoint is a list of states of optimisers, with their parameter groups."""
    states = value if isinstance(value, list) else [None]
    groups = [state.get("param_groups") if isinstance(state, dict) else None for state in states]
    return all(isinstance(of, list) and all(map(_is_group, of)) for of in groups)


def _is_group(value: Any) -> bool:
    named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    return named and isinstance(value.get("params"), list)


_OF_SCHEDULES = {"initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum", "param_names"}
_KNOWN = ("lightning_meta", "torch.nn", "torch.optim")


def _home(path: str) -> str:
    """The path at which a class is defined."""
    path = real_path(path)
    if not lies_in(path, _KNOWN):  # importing would run code that an untrusted file names
        return path
    try:
        cls = import_class(path)
    except UserError:
        return path
    return f"{cls.__module__}.{cls.__qualname__}"


def first_weights_of(cls: type) -> set[str]:
    """The arguments that only set the initial weights of a module; see `TrainedModule`."""
    return {name for base in cls.__mro__ for name in vars(base).get("sets_first_weights", ())}
