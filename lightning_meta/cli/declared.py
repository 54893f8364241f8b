"""What parsers and classes declare: options, their types, and the classes that fit a type."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from functools import cache
from typing import Any

from jsonargparse import ArgumentParser

from lightning_meta.describing import FACTORIES


class Typed(str):
    """A value as it was typed on the command line, such as "null" or "[1, 2]"."""


def options_of(parser: Any) -> dict[str, Action]:
    """The options that set a value, by name. Neither argparse nor jsonargparse has a public list of them."""
    return {action.dest: action for action in parser._actions if action.default is not SUPPRESS}


def type_of(action: Action) -> Any:
    """The type that an option was declared with; `Any` without one. jsonargparse has no public attribute for it."""
    return bool if action.nargs == 0 else getattr(action, "_typehint", None) or action.type or Any


@cache
def arguments_of(make: Callable[..., Any]) -> dict[str, Action]:
    """The arguments of a class or a function, inherited ones included, as the parser finds them."""
    parser = ArgumentParser(exit_on_error=False)
    if not isinstance(make, type):
        parser.add_function_arguments(make, fail_untyped=False)
    else:  # an optimizer and a schedule get their first argument in training
        parser.add_class_arguments(make, skip={1} if issubclass(make, FACTORIES) else None, fail_untyped=False)
    return options_of(parser)


def fits(kind: Any, value: Any) -> bool:
    """Whether the parser accepts a value for a type."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--x", type=kind)
        parser.parse_args([f"--x={value}"]) if isinstance(value, Typed) else parser.parse_object({"x": value})
    except (ArgumentError, TypeError, ValueError):
        return False
    return True


def alternatives(kind: Any) -> list[Any]:
    """The types of a union; otherwise the type alone."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return [inner for each in typing.get_args(kind) for inner in alternatives(each)] if union else [kind]


def inner_type(kind: Any, collection: type) -> Any:
    """The type of the items of an iterable, or of the values of a mapping; None for other types.

    >>> from collections.abc import Iterable
    >>> inner_type(list[int] | None, Iterable), inner_type(dict[str, float], Mapping), inner_type(int, Iterable)
    (<class 'int'>, <class 'float'>, None)
    """
    for each in alternatives(kind):
        origin, args = typing.get_origin(each), typing.get_args(each)
        if isinstance(origin, type) and issubclass(origin, collection) and len(args) == 1 + (collection is Mapping):
            return args[-1]
    return None


def classes_of(kind: Any) -> list[type]:
    """The classes of a type whose subclasses a configuration can name, also those that a callable returns."""
    classes: list[type] = []
    for each in alternatives(kind):
        if typing.get_origin(each) is Callable:
            classes += classes_of(typing.get_args(each)[-1])
        elif isinstance(each, type) and not typing.get_args(each) and not issubclass(each, Enum):
            classes += [each] * (each.__module__.partition(".")[0] not in sys.stdlib_module_names)
    return classes


def subclasses(kind: Any) -> Iterator[type]:
    """The imported classes that fit a type."""
    remaining = classes_of(kind)
    while remaining:
        yield (cls := remaining.pop())
        remaining += cls.__subclasses__()


def named(kind: Any, name: str) -> dict[str, type]:
    """The imported classes of a name that fit a type, by path; abstract ones only if there is no other."""
    same = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in subclasses(kind) if cls.__name__ == name}
    public = {path: cls for path, cls in same.items() if "<locals>" not in path and "._" not in path}
    return {path: cls for path, cls in public.items() if not inspect.isabstract(cls)} or public


def makes(make: Any, kind: Any) -> bool:
    """Whether an object is a class, or a function that by its annotation returns one, that fits a type."""
    classes = classes_of(kind)
    if isinstance(make, types.FunctionType):  # where a callable is expected, a function is passed as it is
        classes = [each for each in alternatives(kind) if each in classes]
        with suppress(NameError):  # an annotation that is imported only for the type checker
            make = typing.get_type_hints(make).get("return")
    return isinstance(make, type) and issubclass(make, tuple(classes))


def shown(kind: Any) -> str:
    """A type in the words of a configuration.

    >>> shown(tuple[int, int] | None), shown(typing.Literal["on", "off", False]), shown(Mapping[str, int])
    ('tuple[int, int] or null', "'on' or 'off'", 'Mapping')
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if len(kinds := alternatives(kind)) > 1:
        return " or ".join(map(shown, kinds))
    if origin is typing.Literal:  # types with the value "off" also contain False, as YAML 1.1 reads `off` as False
        return " or ".join(repr(value) for value in args if value is not False)
    if origin is Callable:
        return shown(args[-1])
    name = "null" if kind is types.NoneType else getattr(origin or kind, "__name__", str(kind))
    if not args or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return name
    return f"{name}[{', '.join('...' if each is ... else shown(each) for each in args)}]"
