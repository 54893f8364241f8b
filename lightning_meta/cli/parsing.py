"""Helpers of the parsers: existing files, folders of loggers, arguments of networks, mistakes in nested objects."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from jsonargparse import Namespace, add_instantiator

import lightning_meta
from lightning_meta import nn
from lightning_meta.cli.options import Place, as_options, objects_in
from lightning_meta.describing import FACTORIES, RemembersArguments, remember
from lightning_meta.errors import UserError, reason_of
from lightning_meta.fitting.checks import as_list
from lightning_meta.import_paths import import_object
from lightning_meta.run import RunLogger

# Imported so that the classes can be named without their path: `--model=ProtoNet`.
for _module in (lightning_meta, lightning_meta.nn, lightning_meta.sources, lightning_meta.weightings):
    for _name in _module.__all__:
        getattr(_module, _name)


# The public paths of the networks of this package, by their short names.
_NETWORKS = {n: f"lightning_meta.nn.{n}" for n in lightning_meta.nn.__all__ if isinstance(getattr(nn, n), type)}
CLASS_PATH = re.compile(r"""(\bclass_path["']?\s*:\s*["']?)([A-Za-z_]\w*)(?=["']?\s*(?:[,}\n#]|$))""")
"""A short name after `class_path:` in YAML or JSON."""


def own_path(short: re.Match[str]) -> str:
    """Return the path of a network of this package for a match of `CLASS_PATH`; other names are kept.

    jsonargparse refuses a short name if another package that is imported has a class of the same name, such as
    `torchvision.ops.MLP`.

    >>> CLASS_PATH.sub(own_path, "backbone: {class_path: MLP}")
    'backbone: {class_path: lightning_meta.nn.MLP}'
    """
    return f"{short[1]}{_NETWORKS.get(short[2], short[2])}"


def with_own_paths(args: Sequence[str]) -> list[str]:
    """Replace short names of networks of this package by their paths in options that take a network."""
    replaced = []
    for before, arg in pairwise(["", *args]):
        option, equals, value = arg.partition("=")
        if not equals:
            option, value = before, arg
        if re.fullmatch(r"--(model|data)\.[\w.+]*", option):
            value = CLASS_PATH.sub(own_path, value)
            if re.search(r"\.(class_path|backbone|network|stems(\.\w+)?)\+?$", option):
                value = re.sub(r"(^|:\s*)(\w+)(?=\s*([,}]|$))", own_path, value)
        replaced.append(f"{option}={value}" if equals else value)
    return replaced


def refuse_existing(option: str, files: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace files that an option such as "--out" names; called before anything is computed.

    Raises:
        UserError: One of the files exists.
    """
    for file in files:
        # `lexists` includes broken links. A folder is refused by the command itself.
        if not overwrite and os.path.lexists(file) and not file.is_dir():
            raise UserError(f"{option}: {file} already exists; name another, or give --overwrite to replace it")


def with_save_dir(args: Sequence[str]) -> list[str]:
    """Add the required folder to `--trainer.logger=TensorBoardLogger`, which is then set to the run directory."""
    text = "\n".join(args)
    named = re.search(r"^--trainer\.logger[=\n](\w+\.)*TensorBoardLogger$", text, re.MULTILINE)
    without = named and not re.search(r"^--trainer\.logger\.(init_args\.)?save_dir", text, re.MULTILINE)
    return [*args, *(["--trainer.logger.save_dir="] if without else [])]


def log_into_run(trainer: Namespace, run: RunLogger) -> None:
    """Set the folder of loggers without one to the run directory, in the options of the Trainer."""
    if trainer.get("fast_dev_run"):  # the Trainer replaces all loggers by one that writes nothing
        return
    for logger in as_list(trainer.get("logger")):
        if not isinstance(logger, Namespace) or "init_args" not in logger or "save_dir" not in logger.init_args:
            continue
        if logger.init_args.save_dir in (None, "", "."):
            logger.init_args.save_dir = run.save_dir
            if logger.class_path.rpartition(".")[2] == "TensorBoardLogger":
                logger.init_args.name, logger.init_args.version = "", ""


OPTIMIZER = re.compile(r"--model\.(?:init_args\.)?optimizer(?:\.init_args)?(?:\.(\w+))?(?:=.*)?", re.DOTALL)


def kept_by_optimizer(optimizer: Any, args: Sequence[str]) -> str | None:
    """Return a line about values of an optimizer named on the command line that come from the configuration.

    jsonargparse keeps the arguments that both classes accept, defaults too, such as `weight_decay` 0 of Adam for AdamW.
    """
    given = {match[1] or "class_path" for arg in args if (match := OPTIMIZER.fullmatch(arg))}
    if "class_path" not in given or not isinstance(optimizer, Namespace) or "init_args" not in optimizer:
        return None
    named = optimizer.class_path.rpartition(".")[2]
    if not re.search(rf"\b{named}\b", " ".join(args)):  # a later configuration names another
        return None
    given |= set(re.findall(r"(\w+)[\"']?\s*:", " ".join(args)))  # as in {class_path: AdamW, init_args: {lr: 0.1}}
    defaults = inspect.signature(import_object(optimizer.class_path)).parameters
    values = {name: value for name, value in vars(optimizer.init_args).items() if name in defaults.keys() - given}
    kept = [name for name, value in values.items() if value != defaults[name].default]
    shown = ", ".join(f"{name} {values[name]}" for name in kept)
    if not kept:
        return None
    return f"--model.optimizer {named} has {shown} from the configuration; change it by --model.optimizer.{kept[0]}"


def remember_networks(config: Any) -> None:
    """Let the parser record the arguments of networks that do not store them, so that checkpoints can."""
    for _, spec in objects_in("model", config):
        try:
            make = import_object(str(spec.class_path))
        except UserError:  # reported by the parser when it instantiates the object
            continue
        of_torch = isinstance(make, type) and issubclass(make, torch.nn.Module)
        if isinstance(make, FunctionType) or (of_torch and not issubclass(make, RemembersArguments)):
            add_instantiator(_remembering, make, subclasses=False)  # type: ignore[arg-type]


def _remembering(make: Callable[..., Any], *args: Any, **init_args: Any) -> Any:
    made = make(*args, **init_args)
    if isinstance(made, torch.nn.Module):
        remember(made, init_args, None if isinstance(make, type) else make)
    return made


def mistake_in(config: Namespace, refusal: Exception) -> UserError | None:
    """Find the mistake in the arguments of an object by instantiating all objects again, innermost first.

    The parser itself reports for each alternative of a type why it does not fit, and drops the original error.

    Args:
        config: The configuration that could not be instantiated.
        refusal: The parser's error, whose message contains the reason.

    Returns:
        The error, with options such as `--data.shots` in its message; None if no object raises one.
    """
    try:
        for section, value in vars(config).items():
            _made(section, value)
    except UserError as error:
        return error
    except RuntimeError as error:
        if reason_of(error.__cause__ or error) in reason_of(refusal):
            return UserError(str(error))
    return None


def _made(path: str, config: Any) -> Any:
    if isinstance(config, list):
        return [_made(path, value) for value in config]
    if not isinstance(config, Namespace):
        return config
    if "class_path" not in config:
        return Namespace({name: _made(f"{path}.{name}", value) for name, value in vars(config).items()})
    init_args = {**vars(config.get("init_args", Namespace())), **(config.get("dict_kwargs") or {})}
    arguments = {name: _made(f"{path}.{name}", value) for name, value in init_args.items()}
    owner = config.class_path.rpartition(".")[2]
    try:
        cls = import_object(config.class_path)
        factory = isinstance(cls, type) and issubclass(cls, FACTORIES)
        return partial(cls, **arguments) if factory else cls(**arguments)
    except UserError as error:
        raise UserError(as_options(str(error), [Place(path, owner, init_args)])) from error
    except Exception as error:
        raise RuntimeError(f"--{path}: {owner}: {reason_of(error)}") from error
