"""Plain data to objects: only what a model is made of, and what the caller allows."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

import torch

from lightning_meta.describing import FACTORIES, Described, remember
from lightning_meta.errors import UserError
from lightning_meta.import_paths import (
    TRUSTED,
    Allow,
    check_trusted,
    import_object,
    lies_in,
    own_path,
    real_path,
    reason,
)
from lightning_meta.specifications import PATHS, class_paths, marked

# Activations and the like, in Python and in C: functions of these modules only operate on tensors.
OF_TENSORS = ("torch.nn.functional", "torch._C._nn")

_rebuilt: ContextVar[bool] = ContextVar("rebuilt", default=False)


@contextmanager
def rebuilding() -> Iterator[None]:
    """Within the context, what is made gets all of its weights from a checkpoint, so none are read from elsewhere."""
    token = _rebuilt.set(True)
    try:
        yield
    finally:
        _rebuilt.reset(token)


def is_rebuilt() -> bool:
    """Whether what is made now gets its weights from a checkpoint."""
    return _rebuilt.get()


def build(spec: Any, allow: Allow = ()) -> Any:
    """Make the object that a specification describes.

    Args:
        spec: What `describe` returned; a value that describes no object is returned as it is.
        allow: Classes, or names of modules, that may be built besides the trusted ones.

    Returns:
        The object, with tuples for lists; for an optimiser a `functools.partial` that still wants its parameters, and
        for a schedule one that wants its optimiser.

    Raises:
        UserError: A class is not allowed or not to be found, its arguments do not fit, or the specification is nested
            too deeply.
    """
    allow = tuple(allow)
    for path in list(class_paths(spec)):  # all of it is read before anything is imported
        check_trusted(path, allow)
    return _build(spec, allow)


def _build(spec: Any, allow: tuple[Any, ...]) -> Any:
    if isinstance(spec, list | tuple):
        return tuple(_build(v, allow) for v in spec)
    if not isinstance(spec, Mapping):
        return spec
    key = next((key for key in PATHS if marked(spec, key)), None)
    if key is None:
        return {k: _build(v, allow) for k, v in spec.items()}
    path: str = spec[key]
    found = _find(real_path(path), allow)
    if key == "import_path" and "member" in spec:
        return _member(path, found, spec["member"])
    given = spec.get("init_args") or {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{path} cannot be built: its init_args are no arguments by name")
    init_args = {k: _build(v, allow) for k, v in given.items()}
    if key == "import_path":
        _check_passed(path, found, allow)
        return functools.partial(found, **init_args) if "init_args" in spec else found
    if key == "function_path":
        if isinstance(found, type) or not _returns(found, torch.nn.Module):
            raise UserError(f"{path} is no function that says that it returns a torch.nn.Module")
    elif not isinstance(found, type):
        raise UserError(f"{path} is not a class")
    elif not _describable(found):
        raise UserError(f"{path} is not a part of a model: expected a module, an optimiser, a schedule or a task")
    elif issubclass(found, FACTORIES):
        return functools.partial(found, **init_args)
    try:
        instance = found(**init_args)
    except UserError:
        raise
    except Exception as error:  # torch checks its arguments by errors of every kind
        raise UserError(f"{path} cannot be built: {reason(error)}") from error
    if isinstance(instance, torch.nn.Module):
        if key == "function_path":
            remember(instance, init_args, found)
        elif "_init_args" not in instance.__dict__:
            remember(instance, init_args)
    return instance


def _check_passed(path: str, found: Any, allow: tuple[Any, ...]) -> None:
    """Refuse what is passed on as an argument and would do harm when a network calls it.

    Raises:
        UserError: It is no part of a model, makes none, and the caller allows no more than its module.
    """
    if isinstance(found, type):
        harmless = _describable(found)
    else:
        harmless = lies_in(own_path(found), OF_TENSORS) or _returns(found, (torch.nn.Module, *FACTORIES))
    # A name does not do: `--trust` allows every name that the file holds.
    if not harmless and all(isinstance(a, str) or own_path(a) != own_path(found) for a in allow):
        raise UserError(
            f"{path} is neither a part of a model nor a function that says that it returns one; if you trust it, load "
            f"the checkpoint in Python with load(..., allow=[{path.rpartition('.')[2]}]), the object and not its name"
        )


def _find(path: str, allow: tuple[Any, ...]) -> Any:
    """The class or function of a path, which the caller allows; a class of a model may be one of `TRUSTED` as well."""
    for candidate in allow:
        if not isinstance(candidate, str) and own_path(candidate) == path:
            return candidate
    found = import_object(path)
    if not own_path(found):
        raise UserError(f"{path} is neither a class nor a function")
    # A trusted module may have imported a class from elsewhere.
    check_trusted(own_path(found), allow, TRUSTED if isinstance(found, type) and _describable(found) else ())
    return found


def _member(path: str, found: Any, name: Any) -> Any:
    members = found.__members__ if isinstance(found, type) and issubclass(found, Enum) else {}
    if not isinstance(name, str) or name not in members:
        raise UserError(f"{path} has no member {str(name)[:100]!r}")
    return members[name]


def _describable(cls: type) -> bool:
    """Whether a class is of a kind that `describe` describes; no other is called, whoever allows its module."""
    return issubclass(cls, (torch.nn.Module, Described, *FACTORIES)) or is_dataclass(cls)


def _returns(function: Any, kinds: type | tuple[type, ...]) -> bool:
    """Whether a function says that it returns such a part of a model."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except (TypeError, NameError, AttributeError):
        return False
    return isinstance(returned, type) and issubclass(returned, kinds)
