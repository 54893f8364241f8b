"""What a run directory may name before its user has said `--trust`.

The configuration in a run directory is read for its data. The parser imports what a configuration names, wherever its
types expect a class or a function, by a class path, by a string, by a file that a string names. So a class is looked
for in the rooms below alone, and a string is let through only where its type is one of plain values.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from reprlib import repr
from typing import Any

import yaml

from lightning_meta.configuration import import_class, lies_in, real_path
from lightning_meta.errors import UserError
from lightning_meta.reading import read_yaml

HELP = (
    "Also import and build the classes of other modules than this package's and torch's that the run names, such as "
    "a method in a file of your own. This runs their code: give it if the run is yours."
)
MEND = "give --trust if the run is yours: it imports what the run names, which runs its code"

# What the numbers depend on is taken from a stranger's run. Devices, strategies and nodes start processes and open
# ports, as loaders' workers do: these are the user's to choose.
OF_NUMBERS = ("precision", "deterministic", "inference_mode")
ROOMS = ("lightning_meta.data", "lightning_meta.sources", "lightning_meta.integrations.learn2learn")
KNOWN_METRICS = ("torchmetrics.classification.", "torchmetrics.regression.")  # classes that run no other code
_CONTAINERS = {typing.Union, types.UnionType, list, tuple, set}
_PLAIN = (str, int, float, bool, type(None), Path, PathLike, Ellipsis)


def read_configuration(file: Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        UserError: The file cannot be read, or does not hold one.
    """
    try:
        content = read_yaml(file)
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, no such date
        said = " ".join(str(error).split())
        raise UserError(f"{file}: this is no configuration ({said}); mend it, or give another with --config") from error
    sections = [content, *(content.get(name) or {} for name in ("data", "trainer"))] if _named(content) else [content]
    if not all(map(_named, sections)):
        raise UserError(f"{file}: expected a configuration as `fit` writes it, with data and trainer; mend it")
    return dict(content)


def without_machine(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run without those that say on which machine and in how many processes it goes."""
    trainer = {name: value for name, value in stored["trainer"].items() if name in OF_NUMBERS}
    return {**stored, "trainer": trainer, "data": _without_workers(stored.get("data"))}


def _without_workers(data: Any) -> Any:
    if not isinstance(data, Mapping) or not isinstance(given := data.get("init_args"), Mapping):
        return data
    return {**data, "init_args": {name: value for name, value in given.items() if name != "num_workers"}}


def check_untrusted(stored: Mapping[str, Any], file: Path) -> None:
    """Refuse a configuration by which the parser might import or call what is not this package's.

    Args:
        stored: The options `data`, `trainer` and `seed_everything` of a run.
        file: Where they were read, for the error.

    Raises:
        UserError: What is not let through.
    """
    try:
        _check_object(stored.get("data"), "data")
        for name, value in {**stored["trainer"], "seed_everything": stored.get("seed_everything")}.items():
            if not all(map(_is_harmless, value if isinstance(value, list) else [value])):
                raise UserError(f"{name} is {repr(value)}")
    except UserError as error:
        raise UserError(f"{file}: {error}; {MEND}") from error


def _check_object(spec: Any, key: str) -> None:
    """Check `{"class_path": ..., "init_args": {...}}`, and all that lies in it."""
    if not _named(spec) or not set(spec) <= {"class_path", "init_args"}:
        raise UserError(f"{key} is {repr(spec)}, and not a class_path with init_args")
    path, given = real_path(str(spec.get("class_path"))), spec.get("init_args") or {}
    if not lies_in(path, ROOMS):
        raise UserError(f"{key} names the class {path}, which is not one of lightning_meta.data")
    cls = import_class(path)
    if not lies_in(cls.__module__, ROOMS):
        raise UserError(f"{key} names the class {path}, which is not one of lightning_meta.data")
    if not _named(given):
        raise UserError(f"{key}: {path} has no arguments by name")
    hints, defaults = _hints(cls), inspect.signature(cls).parameters
    for name, value in given.items():
        if metric := next(_metrics_by_path({name: value}), None):
            raise UserError(f"{key}.{name} names the metric {metric}, which may be any code")
        if isinstance(value, Mapping) and "class_path" in value:
            _check_object(value, f"{key}.{name}")
        elif name == "url" and name in defaults and value != defaults[name].default:
            raise UserError(f"{key}.url is {repr(value)}, and not where the data set's authors publish it")
        elif not (value is None or isinstance(value, bool | int | float) or _is_plain(hints.get(name))):
            raise UserError(f"{key}.{name} is {repr(value)}, which may name anything")


def _metrics_by_path(value: Any) -> Iterator[str]:
    """The paths by which metrics are named, at any depth; those of torchmetrics are known to do no harm."""
    if isinstance(value, Mapping):
        metric = value.get("metric")
        if isinstance(metric, str) and "." in metric and not metric.startswith(KNOWN_METRICS):
            yield metric
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for inner in value:
        yield from _metrics_by_path(inner)


def _hints(cls: type) -> dict[str, Any]:
    """The types of the arguments of a constructor, inherited ones included."""
    hints: dict[str, Any] = {}
    for parent in inspect.getmro(cls):
        if "__init__" in vars(parent) and parent.__module__.startswith("lightning_meta."):
            hints = {**typing.get_type_hints(parent.__init__), **hints}  # type: ignore[misc]
    return hints


def _is_plain(hint: Any) -> bool:
    """Whether a type is made of numbers, text and paths, so that no value of it is imported or called."""
    if hint in _PLAIN:
        return True
    if isinstance(hint, type) and is_dataclass(hint):
        return all(map(_is_plain, [typing.get_type_hints(hint)[field.name] for field in fields(hint)]))
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return True
    known = origin in _CONTAINERS or (isinstance(origin, type) and issubclass(origin, typing.Collection))
    return known and all(map(_is_plain, typing.get_args(hint)))


def _is_harmless(value: Any) -> bool:
    """Whether an option of the trainer is a number or a name, and neither a path nor code."""
    if value is None or isinstance(value, bool | int | float):
        return True
    return isinstance(value, str) and bool(re.fullmatch(r"[\w,-]*", value)) and not Path(value).is_file()


def _named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
