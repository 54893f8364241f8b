"""Describe objects as plain data, by the constructor arguments that they remember."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from os import PathLike, fspath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

import lightning_meta
from lightning_meta.checks import needed, switch
from lightning_meta.errors import UserError, similar
from lightning_meta.import_paths import is_importable, own_path, public_path
from lightning_meta.specifications import marked, unknown_parts

FACTORIES = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
OF_OPTIMIZER = ("lr", "learning_rate", "weight_decay", "momentum", "betas")  # also of optimisers other than Adam
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


class RemembersArguments:
    """A class whose instances remember their constructor arguments, defaults included.

    Arguments annotated as `bool`, and `int`, `float` or `str` without None, are checked as well.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:
            parameters = inspect.signature(cls.__init__).parameters
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                unknown = [name for name in kwargs if name not in parameters]
                if unknown:
                    raise unknown_option(cls, unknown[0]) from None
            return instance  # a copy, an unpickled instance, or a call for which `__init__` raises a better error
        bound.apply_defaults()
        named = dict(list(bound.arguments.items())[1:])  # without `self`
        extra: dict[str, Any] = {}  # the content of `**kwargs`; `*args` have no names
        for parameter in bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                extra = named.pop(parameter.name)
            elif parameter.kind is parameter.VAR_POSITIONAL:
                named.pop(parameter.name, None)
        options = options_of(cls)
        for name in sorted(fixed_options(cls) & extra.keys()):
            raise UserError(f"{name}: {cls.__name__} sets it itself; leave it out")
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in options.values())
        if unknown := [name for name in extra if name not in options and not any_name]:
            raise unknown_option(cls, unknown[0])
        init_args = {**named, **extra}
        for name, value in init_args.items():
            if name in options and value is not options[name].default:
                _check_plain(name, value, options[name].annotation)
        inherited = {n: p.default for n, p in options.items() if p.default is not p.empty and n not in init_args}
        instance.__dict__["_init_args"] = {**init_args, **inherited}
        if unnamed := _unnamed(bound):
            instance.__dict__["_unnamed"] = unnamed
        return instance


def _check_plain(name: str, value: Any, annotation: Any) -> None:
    """Check that the value of a `bool` argument is a bool, and that arguments that need a value are not None."""
    if annotation in ("bool", bool):
        switch(**{name: value})
    elif annotation in ("int", "float", "str", int, float, str):
        needed(**{name: value})


class Described(RemembersArguments):
    """Base class of parts of a model: remembers its constructor arguments, so that a checkpoint can rebuild it."""

    def update_init_args(self, **init_args: Any) -> None:
        """Update the remembered arguments with values that were only known after construction."""
        self.__dict__["_init_args"] = {**self.__dict__.get("_init_args", {}), **init_args}

    @property
    def fitted_values(self) -> Mapping[str, Any]:
        """The values computed from data that `with_fitted` set and the constructor does not take, by name."""
        values: Mapping[str, Any] = self.__dict__.get("_fitted", {})
        return values

    def remember_fitted(self, **values: Any) -> None:
        """Store the values that `with_fitted` needs, once the object is constructed, to make this object again."""
        self.__dict__["_fitted"] = values

    def with_fitted(self, **values: Any) -> Self:
        """Return a copy with values that were computed from data."""
        raise UserError(f"{type(self).__name__} has no values that are computed from data")


def remember(instance: Any, init_args: Mapping[str, Any], function: Callable[..., Any] | None = None) -> None:
    """Store the constructor arguments of an object for `describe`.

    Args:
        instance: The object.
        init_args: Arguments by name.
        function: Function that returned the object, if it was not made by calling its class.
    """
    # `nn.Module.__setattr__` fails before the constructor of `nn.Module` has run.
    instance.__dict__["_init_args"] = dict(init_args)
    if function is not None:
        instance.__dict__["_function"] = function


def describe(value: Any) -> Any:
    """Describe a value as plain data, from which `build` can make it again.

    Args:
        value: A number, string, list or dictionary; a dataclass; a module that is `Described`, uses Lightning's
            `save_hyperparameters` or was made by the command line; an importable class or function, or a
            `functools.partial` of one.

    Returns:
        Numbers, strings, lists and dictionaries; an object is `{"class_path": ..., "init_args": {...}}`, similarly with
        `function_path` or `import_path`, or `{"instance": class}` if it is not known how it was made.
    """
    if isinstance(value, Enum):
        return {"import_path": public_path(type(value)), "member": value.name}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, str):
        return str.__str__(value)  # a NumPy string would be pickled by reference to its class
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


def _describe_partial(value: functools.partial[Any]) -> Any:
    target, unnamed = value.func, value.args
    if str(getattr(target, "__module__", "")).startswith("jsonargparse."):  # its last argument is the real function
        target, unnamed = value.args[-1], ()
    if unnamed or not (isinstance(target, type) or is_importable(target)):
        return {"instance": "functools.partial"}
    key = "class_path" if isinstance(target, type) and issubclass(target, FACTORIES) else "import_path"
    return {key: public_path(target), "init_args": describe(value.keywords)}


def _describe_instance(value: Any) -> Any:
    cls, attributes = type(value), getattr(value, "__dict__", {})
    init_args: Mapping[str, Any] | None = None
    if "_unnamed" in attributes:
        pass
    elif is_dataclass(value):
        init_args = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    elif "_init_args" in attributes:
        init_args = attributes["_init_args"]
    elif isinstance(value, HyperparametersMixin) and (value.hparams or _takes_nothing(cls)):
        init_args = {k: v for k, v in value.hparams.items() if not k.startswith("_")}
    elif isinstance(value, torch.nn.Module) and _takes_nothing(cls):
        init_args = {}
    if init_args is None:
        return {"instance": public_path(cls)}
    key, made_by = ("function_path", attributes["_function"]) if "_function" in attributes else ("class_path", cls)
    fitted = {"fitted": describe(value.fitted_values)} if isinstance(value, Described) and value.fitted_values else {}
    described = describe(init_args)
    if unknown := [name for name, spec in described.items() if marked(spec, "instance")]:
        parameters = inspect.signature(cls.__init__ if made_by is cls else made_by).parameters
        for name in unknown:  # a default need not be described
            if name in parameters and parameters[name].default is init_args[name]:
                del described[name]
    return {key: public_path(made_by), "init_args": described, **fitted}


def refuse_unknown(owner: Any) -> None:
    """Check that `build` can make an object again from its description.

    Raises:
        UserError: It cannot; the message names the argument and how to fix it.
    """
    spec = describe(owner)
    if marked(spec, "instance"):
        unnamed = owner.__dict__.get("_unnamed", "")
        raise UserError(
            f"{type(owner).__name__} takes {unnamed}, which a checkpoint cannot store, as it has no name; pass all "
            "its constructor arguments by name"
        )
    for name, made in unknown_parts(spec["init_args"]):
        raise UserError(
            f"{name}: a checkpoint cannot store how this {made} was made; name its class or function by class_path, "
            "and derive a custom class from torch.nn.Module or lightning_meta.Described, or make it a dataclass"
        )


def _takes_nothing(cls: type) -> bool:
    return not list(inspect.signature(cls).parameters)


def options_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor, and of the base constructors that it passes `**options` on to, by name.

    Only constructors of this package are followed, because they pass on all options except their `fixed_options`; a
    user's constructor may set any option itself, and so its `**options` are one of the parameters.
    """
    named: dict[str, inspect.Parameter] = {}
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
        ours = parent.__module__.startswith(f"{lightning_meta.__name__}.")
        passed_on = [p.name for p in parameters if ours and p.kind is p.VAR_KEYWORD]
        left_out = {"self", *passed_on, *fixed_options(cls, below=parent)}
        named = {p.name: p for p in parameters if p.name not in left_out} | named
        if not passed_on:
            break
    return named


def unknown_option(cls: type, name: str) -> UserError:
    """Return the error for an option that a constructor does not have, with the one that may be meant."""
    options = [o for o, parameter in options_of(cls).items() if parameter.kind is not parameter.VAR_KEYWORD]
    short = name.replace("learning_rate", "lr")
    if short not in options and "optimizer" in options and similar(name, OF_OPTIMIZER):
        meant = "; options of the optimizer belong to it: optimizer=partial(torch.optim.Adam, lr=0.001)"
    else:
        close = short if short in options else similar(name, options)
        meant = f"; did you mean {close}?" if close else ""
    return UserError(f"{name}: there is no such option of {cls.__name__}{meant}")


def fixed_options(cls: type, below: type = object) -> frozenset[str]:
    """Return the options that the constructors of `cls` and of its bases before `below` in the MRO set themselves."""
    parents = cls.__mro__[: cls.__mro__.index(below)]
    return frozenset(name for parent in parents for name in vars(parent).get("fixed_options", ()))


def _unnamed(bound: inspect.BoundArguments) -> str:
    """Return the first argument that cannot be passed by name; "" if there is none."""
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.POSITIONAL_ONLY or (kind is inspect.Parameter.VAR_POSITIONAL and value):
            return f"*{name}" if kind is inspect.Parameter.VAR_POSITIONAL else name
    return ""
