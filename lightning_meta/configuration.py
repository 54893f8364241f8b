"""Objects as plain data, `{"class_path": ..., "init_args": {...}}`, and back.

A checkpoint stores how its module was constructed, so that it loads by its path alone. `Described` remembers
a constructor's arguments, `describe` turns them into plain data, `build` makes the object again:

>>> from functools import partial
>>> import torch
>>> spec = describe(partial(torch.optim.Adam, lr=0.01))
>>> spec
{'class_path': 'torch.optim.adam.Adam', 'init_args': {'lr': 0.01}}
>>> build(spec)
functools.partial(<class 'torch.optim.adam.Adam'>, lr=0.01)

The forms are:

- `{"class_path": p, "init_args": {...}}`: an object of a class; of an optimiser or a schedule, what makes one.
- `{"function_path": p, "init_args": {...}}`: what a function returns, such as `torchvision.models.resnet18`.
- `{"import_path": p}`: a class or a function itself; with `init_args` a `functools.partial` of it, with `member` a
  member of an enumeration.
- `{"instance": name}`: an object of which nobody knows how it was made.

Only what a model is made of is built: modules, optimisers, schedules and tasks of `TRUSTED`, plus what the caller
allows; functions are called only if the caller allows them. Every path of a specification is checked before anything is
imported, and every class and function before it is called.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from os import PathLike, fspath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from lightning_meta.errors import UserError
from lightning_meta.import_paths import (
    TRUSTED,
    Allow,
    UntrustedClassError,
    check_trusted,
    import_class,
    import_object,
    is_importable,
    lies_in,
    own_path,
    public_path,
    real_path,
    reason,
)

__all__ = [
    "TRUSTED",
    "Allow",
    "Described",
    "UntrustedClassError",
    "build",
    "class_paths",
    "describe",
    "import_class",
    "lies_in",
    "public_path",
    "real_path",
    "refuse_unknown",
    "remember",
    "unknown_parts",
]

# Bounds of a specification, far above any model's. Python's limit on recursion is no bound: it depends on the caller's
# stack and, in C, on the release. The second is for values repeated by reference: a short file can hold 2^60 of them.
DEEPEST, LARGEST = 100, 1_000_000

PATHS = ("class_path", "function_path", "import_path")
_FACTORIES = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


class Described:
    """A class whose instances remember the arguments that they were constructed with, defaults included."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:
            return instance  # a copy or an unpickled instance, or a call that `__init__` will refuse better
        bound.apply_defaults()
        remember(instance, _flat(bound))
        if unnamed := _unnamed(bound):
            instance.__dict__["_unnamed"] = unnamed
        return instance

    def update_init_args(self, **init_args: Any) -> None:
        """Remember arguments that were filled in after construction, before parameters were made."""
        remember(self, {**getattr(self, "_init_args", {}), **init_args})


def remember(instance: Any, init_args: Mapping[str, Any], function: Callable[..., Any] | None = None) -> None:
    """Note down what an object was constructed with; `describe` reads it.

    Args:
        instance: The object.
        init_args: The arguments by name.
        function: What made it, where that was not its class.
    """
    # Not by setattr, which `nn.Module` refuses before its own constructor has run.
    instance.__dict__["_init_args"] = dict(init_args)
    if function is not None:
        instance.__dict__["_function"] = function


def describe(value: Any) -> Any:
    """Turn an argument into plain data.

    Args:
        value: Numbers, strings, lists, dictionaries; dataclasses; modules that are `Described`, keep their
            hyper-parameters in Lightning's way or were made by the command line; classes and functions that can be
            imported, and `functools.partial` of them.

    Returns:
        The plain data, in one of the forms above.
    """
    if isinstance(value, Enum):
        return {"import_path": public_path(type(value)), "member": value.name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, functools.partial):
        return _describe_partial(value)
    if isinstance(value, type):
        name = public_path(value)
        return {"class_path": name, "init_args": {}} if issubclass(value, _FACTORIES) else {"import_path": name}
    if isinstance(value, _FUNCTIONS):
        return {"import_path" if is_importable(value) else "instance": own_path(value) or public_path(type(value))}
    return _describe_instance(value)


def _describe_partial(made: functools.partial[Any]) -> Any:
    target, unnamed = made.func, made.args
    if str(getattr(target, "__module__", "")).startswith("jsonargparse."):  # what it calls is the last argument
        target, unnamed = made.args[-1], ()
    if unnamed or not (isinstance(target, type) or is_importable(target)):
        return {"instance": "functools.partial"}
    key = "class_path" if isinstance(target, type) and issubclass(target, _FACTORIES) else "import_path"
    return {key: public_path(target), "init_args": describe(made.keywords)}


def _describe_instance(value: Any) -> Any:
    cls, known = type(value), getattr(value, "__dict__", {})
    init_args: Mapping[str, Any] | None = None
    if "_unnamed" in known:
        pass
    elif is_dataclass(value):
        init_args = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    elif "_init_args" in known:
        init_args = known["_init_args"]
    elif isinstance(value, HyperparametersMixin) and (value.hparams or _takes_nothing(cls)):
        init_args = {k: v for k, v in value.hparams.items() if not k.startswith("_")}
    elif isinstance(value, torch.nn.Module) and _takes_nothing(cls):
        init_args = {}
    if init_args is None:
        return {"instance": public_path(cls)}
    if "_function" in known:
        return {"function_path": public_path(known["_function"]), "init_args": describe(init_args)}
    return {"class_path": public_path(cls), "init_args": describe(init_args)}


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


def class_paths(spec: Any) -> Iterator[str]:
    """Every path of a class or a function in a specification, from the outside in.

    Raises:
        UserError: It is nested too deeply, is too large, or holds itself.
    """
    for _, value in _mappings(spec):
        for key in PATHS:
            if key in value:
                yield real_path(str(value[key]))


def unknown_parts(spec: Any) -> Iterator[tuple[str, str]]:
    """Each object of which a specification does not say how it was made: the name of the argument, and its class.

    Raises:
        UserError: It is nested too deeply, is too large, or holds itself.
    """
    for names, value in _mappings(spec):
        if "instance" in value:
            trail = []
            while names:
                names, name = names
                trail.append(str(name)[:100])
            yield ".".join(name for name in reversed(trail) if name != "init_args"), str(value["instance"])[:100]


def refuse_unknown(owner: Any) -> None:
    """Refuse an object that `build` could not make again from its description alone.

    Raises:
        UserError: The argument, and what to do.
    """
    spec = describe(owner)
    if "instance" in spec:
        unnamed = owner.__dict__.get("_unnamed", "")
        raise UserError(
            f"{type(owner).__name__} takes {unnamed}, which a checkpoint cannot store, as it has no name; give its "
            "constructor arguments with names alone"
        )
    for name, made in unknown_parts(spec["init_args"]):
        raise UserError(
            f"{name}: a checkpoint cannot store how this {made} was made; name its class or function by class_path, "
            "and derive a class of your own from torch.nn.Module, lightning_meta.Described or make it a dataclass"
        )


def _mappings(spec: Any) -> Iterator[tuple[Any, Mapping[Any, Any]]]:
    """Every mapping in a specification, from the outside in, with the names that lead to it: `((None, "a"), "b")`."""
    waiting: list[tuple[Any, Any, int]] = [(None, spec, 0)]
    read = 0
    while waiting:
        (names, value, depth), read = waiting.pop(), read + 1
        if depth > DEEPEST or read > LARGEST:
            bound = f"{DEEPEST} levels deep" if depth > DEEPEST else f"{LARGEST:,} values large"
            raise UserError(f"the description of the object is more than {bound}, or holds itself")
        if isinstance(value, Mapping):
            yield names, value
            children: Iterable[tuple[Any, Any]] = value.items()
        else:
            children = enumerate(value) if isinstance(value, list | tuple) else ()
        waiting += [((names, name), child, depth + 1) for name, child in reversed([*children])]


def _build(spec: Any, allow: tuple[Any, ...]) -> Any:
    if isinstance(spec, list | tuple):
        return tuple(_build(v, allow) for v in spec)
    if not isinstance(spec, Mapping):
        return spec
    key = next((key for key in PATHS if key in spec), None)
    if key is None:
        return {k: _build(v, allow) for k, v in spec.items()}
    path = str(spec[key])
    found = _find(real_path(path), allow)
    if key == "import_path" and "member" in spec:
        return _member(path, found, spec["member"])
    given = spec.get("init_args") or {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{path} cannot be built: its init_args are no arguments by name")
    init_args = {k: _build(v, allow) for k, v in given.items()}
    if key == "import_path":
        return functools.partial(found, **init_args) if "init_args" in spec else found
    if key == "function_path":
        if isinstance(found, type) or not _makes_network(found):
            raise UserError(f"{path} is no function that says that it returns a torch.nn.Module")
        return _call(path, found, init_args)
    if not isinstance(found, type):
        raise UserError(f"{path} is not a class")
    if not _describable(found):
        raise UserError(f"{path} is not a part of a model: expected a module, an optimiser, a schedule or a task")
    if issubclass(found, _FACTORIES):
        return functools.partial(found, **init_args)
    return _call(path, found, init_args)


def _call(path: str, make: Callable[..., Any], init_args: dict[str, Any]) -> Any:
    try:
        instance = make(**init_args)
    except UserError:
        raise
    except Exception as error:  # torch checks its arguments by errors of every kind
        raise UserError(f"{path} cannot be built: {reason(error)}") from error
    if isinstance(instance, torch.nn.Module):
        if not isinstance(make, type):
            remember(instance, init_args, make)
        elif "_init_args" not in instance.__dict__:
            remember(instance, init_args)
    return instance


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
    return issubclass(cls, (torch.nn.Module, Described, *_FACTORIES)) or is_dataclass(cls)


def _makes_network(function: Any) -> bool:
    """Whether a function says that it returns a network; no other is called, whoever allows its module."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except (TypeError, NameError, AttributeError):
        return False
    return isinstance(returned, type) and issubclass(returned, torch.nn.Module)


def _takes_nothing(cls: type) -> bool:
    return not list(inspect.signature(cls).parameters)


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments by name, without `self`, those of `**kwargs` laid out; `*args` cannot be named."""
    flat: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            flat[name] = value
    return flat


def _unnamed(bound: inspect.BoundArguments) -> str:
    """The first argument that was given and cannot be given by name; "" where there is none."""
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.POSITIONAL_ONLY or (kind is inspect.Parameter.VAR_POSITIONAL and value):
            return f"*{name}" if kind is inspect.Parameter.VAR_POSITIONAL else name
    return ""
