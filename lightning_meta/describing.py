"""Objects to plain data: what they were constructed with is remembered, and described."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from os import PathLike, fspath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

import lightning_meta
from lightning_meta.checks import switch
from lightning_meta.errors import UserError
from lightning_meta.import_paths import is_importable, own_path, public_path
from lightning_meta.specifications import marked, unknown_parts

FACTORIES = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


class RemembersArguments:
    """A class whose instances remember the arguments that they were constructed with, defaults included.

    What is declared as a switch, and numbers and text that must be given, are checked on the way.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:
            return instance  # a copy or an unpickled instance, or a call that `__init__` will refuse better
        bound.apply_defaults()
        own = dict(list(bound.arguments.items())[1:])  # without `self`
        further: dict[str, Any] = {}  # those of `**kwargs`; `*args` cannot be named
        for parameter in bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                further = own.pop(parameter.name)
            elif parameter.kind is parameter.VAR_POSITIONAL:
                own.pop(parameter.name, None)
        options = options_of(cls)
        for name in sorted(fixed_options(cls) & further.keys()):
            raise UserError(f"{name}: {cls.__name__} sets it itself; leave it out")
        given = {**own, **further}
        for name, value in given.items():
            if name in options and value is not options[name].default:
                _check_plain(name, value, options[name].annotation)
        inherited = {n: p.default for n, p in options.items() if p.default is not p.empty and n not in given}
        instance.__dict__["_init_args"] = {**given, **inherited}
        if unnamed := _unnamed(bound):
            instance.__dict__["_unnamed"] = unnamed
        return instance


def _check_plain(name: str, value: Any, annotation: Any) -> None:
    """Refuse what counts as true without being so, and None where a value is needed."""
    if annotation in ("bool", bool):
        switch(**{name: value})
    elif value is None and annotation in ("int", "float", "str", int, float, str):
        raise UserError(f"{name}: a value is needed, got None")


class Described(RemembersArguments):
    """A part of a model: it remembers its arguments, and a checkpoint that holds them may build it again."""

    def update_init_args(self, **init_args: Any) -> None:
        """Remember arguments that were filled in after construction, before parameters were made."""
        self.__dict__["_init_args"] = {**self.__dict__.get("_init_args", {}), **init_args}


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
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, str):
        return str.__str__(value)  # NumPy's would be code in a checkpoint
    if isinstance(value, Integral | Real):
        return int(value) if isinstance(value, Integral) else float(value)
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
        return {"class_path": name, "init_args": {}} if issubclass(value, FACTORIES) else {"import_path": name}
    if isinstance(value, _FUNCTIONS):
        return {"import_path" if is_importable(value) else "instance": own_path(value) or public_path(type(value))}
    return _describe_instance(value)


def _describe_partial(made: functools.partial[Any]) -> Any:
    target, unnamed = made.func, made.args
    if str(getattr(target, "__module__", "")).startswith("jsonargparse."):  # what it calls is the last argument
        target, unnamed = made.args[-1], ()
    if unnamed or not (isinstance(target, type) or is_importable(target)):
        return {"instance": "functools.partial"}
    key = "class_path" if isinstance(target, type) and issubclass(target, FACTORIES) else "import_path"
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
    key, made_by = ("function_path", known["_function"]) if "_function" in known else ("class_path", cls)
    described = describe(init_args)
    if unknown := [name for name, spec in described.items() if marked(spec, "instance")]:
        parameters = inspect.signature(cls.__init__ if made_by is cls else made_by).parameters
        for name in unknown:  # what nobody can describe may be left out where it is the default
            if name in parameters and parameters[name].default is init_args[name]:
                del described[name]
    return {key: public_path(made_by), "init_args": described}


def refuse_unknown(owner: Any) -> None:
    """Refuse an object that `build` could not make again from its description alone.

    Raises:
        UserError: The argument, and what to do.
    """
    spec = describe(owner)
    if marked(spec, "instance"):
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


def _takes_nothing(cls: type) -> bool:
    return not list(inspect.signature(cls).parameters)


def options_of(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor by name, and of those that it passes `**options` on to.

    Only constructors of this package are followed: they pass all of them on but for their `fixed_options`, and a user's
    may set any of them itself.
    """
    named: dict[str, inspect.Parameter] = {}
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
        fixed = fixed_options(cls, below=parent)
        named = {p.name: p for p in parameters if p.name not in {"self", *fixed}} | named
        ours = parent.__module__.startswith(f"{lightning_meta.__name__}.")
        if not ours or all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return named


def fixed_options(cls: type, below: type = object) -> frozenset[str]:
    """The options that the constructors between a class and one of its bases set themselves."""
    between = cls.__mro__[: cls.__mro__.index(below)]
    return frozenset(name for parent in between for name in vars(parent).get("fixed_options", ()))


def _unnamed(bound: inspect.BoundArguments) -> str:
    """The first argument that was given and cannot be given by name; "" where there is none."""
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.POSITIONAL_ONLY or (kind is inspect.Parameter.VAR_POSITIONAL and value):
            return f"*{name}" if kind is inspect.Parameter.VAR_POSITIONAL else name
    return ""
