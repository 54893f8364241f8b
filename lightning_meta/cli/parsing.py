"""What the commands share: loggers' folders, remembered arguments, lists of one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace, add_instantiator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lightning_meta
from lightning_meta.cli.options import Place, as_options
from lightning_meta.configuration import RemembersArguments, remember
from lightning_meta.errors import UserError
from lightning_meta.fitting.training import as_list
from lightning_meta.import_paths import import_object
from lightning_meta.run import RunLogger
from lightning_meta.run.wandb_logger import WandbRunLogger, continued

# So that their classes can be named without their path: `--model=ProtoNet`.
for _module in (lightning_meta, lightning_meta.nn, lightning_meta.sources, lightning_meta.weightings):
    for _name in _module.__all__:
        getattr(_module, _name)


class PlainParser(argparse.ArgumentParser):
    """The options of a command that passes others on to `fit`; a mistake is a `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise UserError(message)


SHORT_FORM = "--trainer.logger"


def with_save_dir(args: Sequence[str]) -> list[str]:
    """Let `--trainer.logger=TensorBoardLogger` stand alone, though its class asks for a folder."""
    given = list(args)
    for i, arg in enumerate(given):
        name, equals, value = arg.partition("=")
        value = value if equals else (given[i + 1] if i + 1 < len(given) else "")
        if name == SHORT_FORM and value.rpartition(".")[2] == "TensorBoardLogger":
            if not any(a.startswith((f"{SHORT_FORM}.save_dir", f"{SHORT_FORM}.init_args.save_dir")) for a in given):
                given.insert(i + (1 if equals else 2), f"{SHORT_FORM}.save_dir=")
            break
    return given


def log_into_run(trainer: Namespace, run: RunLogger) -> None:
    """Send loggers that name no folder of their own into the run directory, which is claimed for them.

    Args:
        trainer: The options of the Trainer; those of its loggers are changed in place.
        run: The run directory.
    """
    if trainer.get("fast_dev_run"):  # the Trainer puts a logger that writes nothing in the place of all
        return
    for logger in as_list(trainer.get("logger")):
        if not isinstance(logger, Namespace) or "init_args" not in logger or "save_dir" not in logger.init_args:
            continue
        kind = logger.class_path.rpartition(".")[2]
        if logger.init_args.save_dir in (None, "", "."):
            logger.init_args.save_dir = run.save_dir
            if kind == "TensorBoardLogger":
                logger.init_args.name, logger.init_args.version = "", ""
        if kind == "WandbLogger":
            logger.class_path = f"{WandbRunLogger.__module__}.{WandbRunLogger.__qualname__}"
            logger.init_args = Namespace(continued(logger.init_args.as_dict(), run))


def remember_networks(config: Any) -> None:
    """Let the parser note how each network is made that does not remember it, so that a checkpoint can store it.

    Args:
        config: What is about to be made.
    """
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Namespace | Mapping):
            waiting += (vars(value) if isinstance(value, Namespace) else value).values()
        elif isinstance(value, list):
            waiting += value
        if isinstance(value, Namespace) and "class_path" in value:
            try:
                make = import_object(str(value.class_path))
            except UserError:  # the parser says it where it makes the object
                continue
            if isinstance(make, type):
                forgets = issubclass(make, torch.nn.Module) and not issubclass(make, RemembersArguments)
            else:
                forgets = isinstance(make, FunctionType)
            if forgets:
                add_instantiator(_remembering, make, subclasses=False)  # type: ignore[arg-type]


def _remembering(make: Callable[..., Any], *args: Any, **init_args: Any) -> Any:
    made = make(*args, **init_args)
    if isinstance(made, torch.nn.Module):
        remember(made, init_args, None if isinstance(make, type) else make)
    return made


def mistake_in(config: Namespace) -> UserError | None:
    """The user's mistake in the arguments of a configured object, found by making each object anew, innermost first.

    It is told in options, such as `--data.init_args.shots`.

    The parser, which makes them, says of each alternative of a type why it does not fit, and drops the error itself.

    Args:
        config: The whole configuration.

    Returns:
        The error, in which arguments are options; None where no object of this configuration is to blame.
    """
    try:
        for section, value in vars(config).items():
            _made(section, value)
    except UserError as error:
        return error
    except _NotMadeError:
        pass
    return None


class _NotMadeError(Exception):
    """An object cannot be made, by no mistake in the words of this package."""


def _made(path: str, config: Any) -> Any:
    if isinstance(config, list):
        return [_made(path, value) for value in config]
    if not isinstance(config, Namespace):
        return config
    if "class_path" not in config:
        return Namespace({name: _made(f"{path}.{name}", value) for name, value in vars(config).items()})
    given = vars(config.get("init_args", Namespace()))
    arguments = {name: _made(f"{path}.{name}", value) for name, value in given.items()}
    try:
        cls = import_object(config.class_path)
    except UserError as error:
        raise _NotMadeError from error
    if isinstance(cls, type) and issubclass(cls, Optimizer | LRScheduler):
        return partial(cls, **arguments)
    try:
        return cls(**arguments)
    except UserError as error:
        raise UserError(as_options(str(error), [Place(path, config.class_path.rpartition(".")[2], given)])) from error
    except Exception as error:
        raise _NotMadeError from error
