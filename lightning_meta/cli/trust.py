"""Check the configuration of a run directory that the user does not trust.

`test` reads the data from the configuration of a run. The parser imports whatever a configuration names where a type
expects a class or a function: class paths, strings, and files that strings name. Without `--trust`, classes must
therefore be in the modules below, and strings are accepted only where the type consists of plain values.
"""

from __future__ import annotations

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

from lightning_meta.cli.declared import arguments_of, type_of
from lightning_meta.errors import UserError, reason_of
from lightning_meta.import_paths import import_class, lies_in, real_path
from lightning_meta.reading import read_yaml

SUGGESTED_FIX = "give --trust if the run is yours: it imports what the run names, which runs its code"

# Options of the Trainer that affect results are taken from any run. Devices, strategies and nodes, like the workers of
# loaders, start processes and open ports: the user has to set them.
OF_NUMBERS = ("precision", "deterministic", "inference_mode")
TRUSTED_PACKAGES = ("lightning_meta.data", "lightning_meta.sources", "lightning_meta.integrations.learn2learn")
KNOWN_METRICS = ("torchmetrics.classification.", "torchmetrics.regression.")  # these run no other code
_CONTAINERS = {typing.Union, types.UnionType, list, tuple, set}
_PLAIN = (str, int, float, bool, type(None), Path, PathLike, Ellipsis)


def read_configuration(file: Path) -> dict[str, Any]:
    """Read the configuration of a run.

    Raises:
        UserError: The file cannot be read, or is not a configuration.
    """
    try:
        content = read_yaml(file)
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, no such date
        fix = "fix it, or give another with --config"
        raise UserError(f"{file}: this is not a configuration ({reason_of(error)}); {fix}") from error
    sections = [content, *(content.get(name) or {} for name in ("data", "trainer"))] if _named(content) else [content]
    if not all(map(_named, sections)):
        raise UserError(f"{file}: expected a configuration as `fit` writes it, with data and trainer")
    return dict(content)


def without_machine(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run without those that choose devices, nodes and processes."""
    trainer = {name: value for name, value in stored["trainer"].items() if name in OF_NUMBERS}
    return {**stored, "trainer": trainer, "data": without(stored.get("data"), "num_workers")}


def without(spec: Any, argument: str) -> Any:
    """The configuration of an object without one of its arguments."""
    if not isinstance(spec, Mapping) or not isinstance(args := spec.get("init_args"), Mapping):
        return spec
    return {**spec, "init_args": {name: value for name, value in args.items() if name != argument}}


def check_untrusted(stored: Mapping[str, Any], file: Path) -> None:
    """Refuse a configuration that could make the parser import or call code of other packages.

    Args:
        stored: The options `data`, `trainer` and `seed_everything` of a run.
        file: The file of the configuration, for error messages.

    Raises:
        UserError: The configuration names other code.
    """
    try:
        _check_object(stored.get("data"), "data")
        for name, value in {**stored["trainer"], "seed_everything": stored.get("seed_everything")}.items():
            if not all(map(_is_harmless, value if isinstance(value, list) else [value])):
                raise UserError(f"{name} is {repr(value)}")
    except UserError as error:
        raise UserError(f"{file}: {error}; {SUGGESTED_FIX}") from error


def _check_object(spec: Any, key: str) -> None:
    """Check `{"class_path": ..., "init_args": {...}}` and all nested objects."""
    if not _named(spec) or not set(spec) <= {"class_path", "init_args"}:
        raise UserError(f"{key} is {repr(spec)}, and not a class_path with init_args")
    path, args = real_path(str(spec.get("class_path"))), spec.get("init_args") or {}
    # The path first, before anything is imported; then where the class is really from.
    if not lies_in(path, TRUSTED_PACKAGES) or not lies_in((cls := import_class(path)).__module__, TRUSTED_PACKAGES):
        raise UserError(f"{key} names the class {path}, which is not one of lightning_meta.data")
    if not _named(args):
        raise UserError(f"{key}: {path} has no arguments by name")
    try:
        declared = arguments_of(cls)
    except ValueError as error:  # such as those of an exception, which the parser cannot read
        raise UserError(f"{key} names the class {path}, whose arguments cannot be read") from error
    for name, value in args.items():
        if metric := next(_metrics_by_path({name: value}), None):
            raise UserError(f"{key}.{name} names the metric {metric}, which may be any code")
        if isinstance(value, Mapping) and "class_path" in value:
            _check_object(value, f"{key}.{name}")
        elif name == "url" and name in declared and value != declared[name].default:
            raise UserError(f"{key}.url is {repr(value)}, and not where the data set's authors publish it")
        elif isinstance(value, bool | int | float | None):
            continue
        elif name not in declared or not _is_plain(type_of(declared[name])):
            raise UserError(f"{key}.{name} is {repr(value)}, which may name anything")


def _metrics_by_path(value: Any) -> Iterator[str]:
    """Class paths of metrics at any depth, without those of torchmetrics, which are safe."""
    if isinstance(value, Mapping):
        metric = value.get("metric")
        if isinstance(metric, str) and "." in metric and not metric.startswith(KNOWN_METRICS):
            yield metric
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for inner in value:
        yield from _metrics_by_path(inner)


def _is_plain(hint: Any) -> bool:
    """Whether a type consists of numbers, text and paths, whose values are never imported or called."""
    if hint in _PLAIN:
        return True
    if isinstance(hint, type) and is_dataclass(hint):
        return all(map(_is_plain, [typing.get_type_hints(hint)[field.name] for field in fields(hint)]))
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return True
    container = origin in _CONTAINERS or (isinstance(origin, type) and issubclass(origin, typing.Collection))
    return container and all(map(_is_plain, typing.get_args(hint)))


def _is_harmless(value: Any) -> bool:
    """Whether an option of the Trainer is a number or a plain name, not the path of a file or a class."""
    if value is None or isinstance(value, bool | int | float):
        return True
    return isinstance(value, str) and bool(re.fullmatch(r"[\w,-]*", value)) and not Path(value).is_file()


def _named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
