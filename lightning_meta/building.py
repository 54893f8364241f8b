"""Make objects from plain data: parts of models, and classes that the caller allows.

>>> from functools import partial
>>> from lightning_meta.describing import describe
>>> spec = describe(partial(torch.optim.Adam, lr=0.01))
>>> spec
{'class_path': 'torch.optim.adam.Adam', 'init_args': {'lr': 0.01}}
>>> build(spec)
functools.partial(<class 'torch.optim.adam.Adam'>, lr=0.01)

Only what a model is made of is built: modules, optimisers, schedules and tasks of `TRUSTED`, plus what the caller
allows; functions are called only if the caller allows them. Every path of a specification is checked before anything is
imported, and every class and function before it is called.
"""

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
from lightning_meta.errors import UserError, reason_of
from lightning_meta.import_paths import (
    TRUSTED,
    Allow,
    check_trusted,
    import_object,
    lies_in,
    own_path,
    real_path,
)
from lightning_meta.specifications import PATHS, class_paths, marked

# Modules whose functions, such as activations, only operate on tensors.
OF_TENSORS = ("torch.nn.functional", "torch._C._nn")

_rebuilt: ContextVar[bool] = ContextVar("rebuilt", default=False)


@contextmanager
def rebuilding() -> Iterator[None]:
    """Within this context, objects get all their weights from a checkpoint, so that constructors need not load any."""
    token = _rebuilt.set(True)
    try:
        yield
    finally:
        _rebuilt.reset(token)


def is_rebuilt() -> bool:
    """Whether the caller is within `rebuilding`."""
    return _rebuilt.get()


def build(spec: Any, allow: Allow = (), *, paths_are_checked: bool = False) -> Any:
    """Make the object that a specification describes.

    Args:
        spec: Result of `describe`; a value that describes no object is returned unchanged.
        allow: Classes, or names of modules, that may be built in addition to the trusted ones.
        paths_are_checked: Whether the specification is a part of another, whose paths have all been checked.

    Returns:
        The object, with tuples in place of lists; for an optimiser a `functools.partial` to call with the parameters,
        and for a schedule one to call with the optimiser.

    Raises:
        UserError: A class is not allowed or does not exist, its arguments do not fit, or the specification is nested
            too deeply.
    """
    allow = tuple(allow)
    if not paths_are_checked:
        for named in list(class_paths(spec)):  # check all paths before importing any
            check_trusted(named, allow)
    if isinstance(spec, list | tuple):
        return tuple(build(v, allow, paths_are_checked=True) for v in spec)
    if not isinstance(spec, Mapping):
        return spec
    key = next((key for key in PATHS if marked(spec, key)), None)
    if key is None:
        return {k: build(v, allow, paths_are_checked=True) for k, v in spec.items()}
    path: str = spec[key]
    target = _find(real_path(path), allow)
    if key == "import_path" and "member" in spec:
        return _member(path, target, spec["member"])
    described = spec.get("init_args") or {}
    if not isinstance(described, Mapping) or not all(isinstance(name, str) for name in described):
        raise UserError(f"{path} cannot be built: its init_args must be a mapping from names to values")
    fitted = spec.get("fitted") or {}
    of_object = key == "class_path" and isinstance(target, type) and issubclass(target, Described)
    if fitted and not (of_object and isinstance(fitted, Mapping) and all(isinstance(name, str) for name in fitted)):
        raise UserError(
            f"{path} cannot be built: `fitted` is for classes of this package, a mapping from names to values"
        )
    init_args = {k: build(v, allow, paths_are_checked=True) for k, v in described.items()}
    if key == "import_path":
        _check_passed(path, target, allow)
        return functools.partial(target, **init_args) if "init_args" in spec else target
    if key == "function_path":
        if isinstance(target, type) or not _returns(target, torch.nn.Module):
            raise UserError(f"{path} is not a function annotated to return a torch.nn.Module")
    elif not isinstance(target, type):
        raise UserError(f"{path} is not a class")
    elif not _describable(target):
        raise UserError(f"{path} is not a part of a model: expected a module, an optimiser, a schedule or a task")
    elif issubclass(target, FACTORIES):
        return functools.partial(target, **init_args)
    try:
        instance = target(**init_args)
        if fitted:
            instance = instance.with_fitted(**{k: build(v, allow, paths_are_checked=True) for k, v in fitted.items()})
    except UserError:
        raise
    except Exception as error:  # torch raises many types of errors for bad arguments
        raise UserError(f"{path} cannot be built: {reason_of(error)}") from error
    if isinstance(instance, torch.nn.Module):
        if key == "function_path":
            remember(instance, init_args, target)
        elif "_init_args" not in instance.__dict__:
            remember(instance, init_args)
    return instance


def _check_passed(path: str, target: Any, allow: tuple[Any, ...]) -> None:
    """Check that a class or function passed as an argument does no harm when a network calls it.

    Raises:
        UserError: It is neither a part of a model nor returns one, and `allow` does not contain the object itself.
    """
    if isinstance(target, type):
        harmless = _describable(target)
    else:
        harmless = lies_in(own_path(target), OF_TENSORS) or _returns(target, (torch.nn.Module, *FACTORIES))
    # Names in `allow` do not count, since `--trust` allows every name in the file.
    if not harmless and all(isinstance(a, str) or own_path(a) != own_path(target) for a in allow):
        raise UserError(
            f"{path} is neither a part of a model nor a function annotated to return one; if you trust it, load "
            f"the checkpoint in Python with load(..., allow=[{path.rpartition('.')[2]}]), the object and not its name"
        )


def _find(path: str, allow: tuple[Any, ...]) -> Any:
    """Return the class or function at a path: one that the caller allows, or a class of a model in `TRUSTED`."""
    for candidate in allow:
        if not isinstance(candidate, str) and own_path(candidate) == path:
            return candidate
    target = import_object(path)
    if not own_path(target):
        raise UserError(f"{path} is neither a class nor a function")
    # A trusted module may have imported a class from elsewhere.
    check_trusted(own_path(target), allow, TRUSTED if isinstance(target, type) and _describable(target) else ())
    return target


def _member(path: str, enum: Any, name: Any) -> Any:
    members = enum.__members__ if isinstance(enum, type) and issubclass(enum, Enum) else {}
    if not isinstance(name, str) or name not in members:
        raise UserError(f"{path} has no member {str(name)[:100]!r}")
    return members[name]


def _describable(cls: type) -> bool:
    """Whether `describe` supports a class. Other classes are never called, even if the caller allows their module."""
    return issubclass(cls, (torch.nn.Module, Described, *FACTORIES)) or is_dataclass(cls)


def _returns(function: Any, kinds: type | tuple[type, ...]) -> bool:
    """Whether the return annotation of a function is one of the classes `kinds`."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except (TypeError, NameError, AttributeError):
        return False
    return isinstance(returned, type) and issubclass(returned, kinds)
