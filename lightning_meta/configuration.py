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

Only what a model is made of is built: modules, optimisers, schedules and tasks of `TRUSTED`, plus what the caller
allows. Every class path of a specification is checked before anything is imported, and every class before it is called.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from typing import Any, TypeAlias

import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

import lightning_meta
from lightning_meta.errors import UserError
from lightning_meta.migration import renamed

Allow: TypeAlias = Iterable[str | type]

# The rooms that hold what a model is made of, and none whose classes open files, start runs or import by name.
TRUSTED = (
    "lightning_meta.meta",
    "lightning_meta.multitask",
    "lightning_meta.nn",
    "lightning_meta.tasks",
    "lightning_meta.weightings",
    "lightning_meta.integrations.learn2learn",
    "torch.nn",
    "torch.optim",
    "lightning.pytorch.cli.ReduceLROnPlateau",
)


# Bounds of a specification, far above any model's. Python's limit on recursion is no bound: it depends on the caller's
# stack and, in C, on the release. The second is for values repeated by reference: a short file can hold 2^60 of them.
DEEPEST, LARGEST = 100, 1_000_000


class UntrustedClassError(UserError):
    """A specification names a class that is neither trusted nor allowed.

    Args:
        path: The path of the class.
        where: Where it was named, as the line begins.
    """

    def __init__(self, path: str, where: str = "") -> None:
        self.path = path
        super().__init__(
            f"{where}the class {path} is not trusted: only parts of models of lightning_meta, torch.nn and torch.optim "
            f"are; if you trust whoever made this checkpoint, load it in Python with "
            f"load(..., allow=[{path.rpartition('.')[0]!r}])"
        )


class Described:
    """A class whose instances remember the arguments that they were constructed with, defaults included."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:
            return instance  # a copy or an unpickled instance, or a call that `__init__` will refuse better
        bound.apply_defaults()
        remember(instance, _with_inherited(cls, _flat(bound)))
        return instance

    def update_init_args(self, **init_args: Any) -> None:
        """Remember arguments that were filled in after construction, before parameters were made."""
        remember(self, {**getattr(self, "_init_args", {}), **init_args})


def remember(instance: Any, init_args: Mapping[str, Any]) -> None:
    """Note down what an object was constructed with; `describe` reads it."""
    # Not by setattr, which `nn.Module` refuses before its own constructor has run.
    instance.__dict__["_init_args"] = dict(init_args)


def describe(value: Any) -> Any:
    """Turn an argument into plain data.

    Args:
        value: Numbers, strings, lists, dictionaries; dataclasses; modules that are `Described`, keep their
            hyper-parameters in Lightning's way or were made by the command line; an optimiser's class or a
            `functools.partial` of it.

    Returns:
        The plain data; `{"instance": name}` for an object of which nobody knows how it was made.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    cls = value if isinstance(value, type) else type(value)
    if isinstance(value, type):
        init_args: Mapping[str, Any] | None = {}
    elif isinstance(value, functools.partial):  # jsonargparse's own has the class among its arguments
        cls = next((c for c in (value.func, *value.args) if isinstance(c, type)), cls)
        init_args = value.keywords if cls is not type(value) else None
    elif is_dataclass(value):
        init_args = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    elif "_init_args" in getattr(value, "__dict__", {}):
        init_args = value.__dict__["_init_args"]
    elif isinstance(value, HyperparametersMixin) and (value.hparams or _takes_nothing(cls)):
        init_args = {k: v for k, v in value.hparams.items() if not k.startswith("_")}
    else:
        init_args = {} if isinstance(value, torch.nn.Module) and _takes_nothing(cls) else None
    name = public_path(cls)
    return {"instance": name} if init_args is None else {"class_path": name, "init_args": describe(init_args)}


def public_path(cls: type) -> str:
    """The path of a class that stays when its file moves: of this package's, the shortest.

    >>> from lightning_meta.meta.maml import MAML
    >>> public_path(MAML), public_path(torch.nn.ReLU)
    ('lightning_meta.MAML', 'torch.nn.modules.activation.ReLU')
    """
    package, *below = cls.__module__.split(".")
    place = sys.modules.get(package) if package == lightning_meta.__name__ else None
    for name in ["", *below]:
        place = getattr(place, name, None) if name else place
        if place is not None and getattr(place, cls.__qualname__, None) is cls:
            return f"{place.__name__}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def real_path(path: str) -> str:
    """Where the class of a path lies: a path of an earlier version or a public one becomes that of its file."""
    path = renamed(path)
    package, _, name = path.rpartition(".")
    if package == lightning_meta.__name__ and name in dir(lightning_meta):
        value = getattr(lightning_meta, name)
        return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else path
    return path


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
        _check_trusted(path, allow)
    return _build(spec, allow)


def class_paths(spec: Any) -> Iterator[str]:
    """Every class path in a specification, from the outside in.

    Raises:
        UserError: It is nested too deeply, is too large, or holds itself.
    """
    waiting, read = [(spec, 0)], 0
    while waiting:
        (value, depth), read = waiting.pop(), read + 1
        if depth > DEEPEST or read > LARGEST:
            bound = f"{DEEPEST} levels deep" if depth > DEEPEST else f"{LARGEST:,} values large"
            raise UserError(f"the description of the object is more than {bound}, or holds itself")
        if isinstance(value, Mapping):
            if "class_path" in value:
                yield real_path(str(value["class_path"]))
            children: Iterable[Any] = value.values()
        else:
            children = value if isinstance(value, list | tuple) else ()
        waiting += [(child, depth + 1) for child in reversed([*children])]


def _build(spec: Any, allow: tuple[str | type, ...]) -> Any:
    if isinstance(spec, list | tuple):
        return tuple(_build(v, allow) for v in spec)
    if not isinstance(spec, Mapping):
        return spec
    if "class_path" not in spec:
        return {k: _build(v, allow) for k, v in spec.items()}
    cls = _find_class(real_path(str(spec["class_path"])), allow)
    given = spec.get("init_args") or {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{spec['class_path']} cannot be built: its init_args are no arguments by name")
    init_args = {k: _build(v, allow) for k, v in given.items()}
    if issubclass(cls, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)):
        return functools.partial(cls, **init_args)
    try:
        instance = cls(**init_args)
    except UserError:
        raise
    except Exception as error:  # torch checks its arguments by errors of every kind
        raise UserError(f"{spec['class_path']} cannot be built: {_reason(error)}") from error
    if isinstance(instance, torch.nn.Module) and "_init_args" not in instance.__dict__:
        remember(instance, init_args)
    return instance


def _check_trusted(path: str, allow: tuple[str | type, ...]) -> None:
    names = [f"{a.__module__}.{a.__qualname__}" if isinstance(a, type) else a for a in allow]
    if not lies_in(path, (*TRUSTED, *names)):
        raise UntrustedClassError(path)


def lies_in(path: str, rooms: Iterable[str]) -> bool:
    """Whether a class path is one of the names, or lies below one of them."""
    return any(path == room or path.startswith(room + ".") for room in rooms)


def _find_class(path: str, allow: tuple[str | type, ...]) -> type:
    for candidate in allow:
        if isinstance(candidate, type) and f"{candidate.__module__}.{candidate.__qualname__}" == path:
            return candidate
    found = import_class(path)
    # A trusted module may have imported a class from elsewhere.
    _check_trusted(f"{found.__module__}.{found.__qualname__}", allow)
    if not _describable(found):
        raise UserError(f"{path} is not a part of a model: expected a module, an optimiser, a schedule or a task")
    return found


def import_class(path: str) -> type:
    """The class of a path, whose module is imported.

    Raises:
        UserError: There is none.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"{path!r} is not the full path of a class")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two for "..x" and "x..y"
        raise UserError(f"the class {path} is not to be found: {_reason(error)}") from error
    if not isinstance(found, type):
        raise UserError(f"{path} is not a class")
    return found


def _describable(cls: type) -> bool:
    """Whether a class is of a kind that `describe` describes; no other is called, whoever allows its module."""
    kinds = (torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, Described)
    return issubclass(cls, kinds) or is_dataclass(cls)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _takes_nothing(cls: type) -> bool:
    return not list(inspect.signature(cls).parameters)


def _with_inherited(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a constructor, and the defaults of those that it passes on as `**options`.

    Only constructors of this package are followed: they pass all of them on, and a user's may set some itself.
    """
    named = dict(arguments)
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
        named |= {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in named}
        ours = parent.__module__.startswith(f"{lightning_meta.__name__}.")
        if not ours or all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return named


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
