"""What `--help` shows: one screen of what is used most, and with `--help_all` every option and its classes."""

from __future__ import annotations

import argparse
import functools
import inspect
import operator
import re
import textwrap
import typing
from abc import ABC
from types import ModuleType
from typing import Any

import torch
from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

import lightning_meta
from lightning_meta import nn, sources
from lightning_meta.configuration import public_path
from lightning_meta.data import Augmentation
from lightning_meta.data.source import Source, TaskGenerator, TaskSource
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_object
from lightning_meta.meta import MetaModule
from lightning_meta.migration import renamed
from lightning_meta.multitask import MultiTaskModule

# `Union[int, float]` is whichever of it and `Union[float, int]` was made first, as typing takes them for equal. Read as
# the second, `--trainer.limit_val_batches 1` is 1.0, which is all batches and not one.
for _name, _hint in Trainer.__init__.__annotations__.items():
    if {int, float} <= set(typing.get_args(_hint)):
        _kinds = [int, float, *(kind for kind in typing.get_args(_hint) if kind not in (int, float))]
        Trainer.__init__.__annotations__[_name] = functools.reduce(operator.or_, _kinds)

MANY = 20  # classes that are listed at most
# Nobody trains with one of these itself; this package's own are known by `ABC`.
FRAMEWORK_BASES = (LightningModule, LightningDataModule, Callback, torch.optim.Optimizer)


class HelpFormatter(DefaultHelpFormatter):
    """Lists the classes that an option may name: no bases, and of hundreds of modules this package's own networks."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return re.sub(r"(known subclasses: )([^)]*)", _shortened, super()._get_help_string(action))


def _shortened(found: re.Match[str]) -> str:
    classes = [path for path in found[2].split(", ") if not _is_base(path)]
    if len(classes) <= MANY:
        return f"{found[1]}{', '.join(classes)}"
    networks = {f"{nn.__name__}.{name}" for name in nn.__all__ if hasattr(getattr(nn, name), "stages")}
    augmentations = [path for path in classes if path == public_path(Augmentation)]  # no network is one
    shown = augmentations or [path for path in classes if path in networks] or classes[:MANY]
    others = len(classes) - len(shown)
    return f"{found[1]}{', '.join(shown)}, and {others} others of torch and elsewhere, or your own, by their path"


def _is_base(path: str) -> bool:
    """Whether a class is there to be subclassed, and not to be named in a configuration."""
    try:
        cls = import_object(path)
    except UserError:  # a class of the user's that has no path
        return False
    return inspect.isclass(cls) and (cls in FRAMEWORK_BASES or ABC in cls.__bases__ or inspect.isabstract(cls))


def names_below(bases: tuple[type, ...], module: ModuleType) -> str:
    """The public classes of a module that a configuration may name in the place of one of these bases.

    Args:
        bases: What they inherit from.
        module: Such as `lightning_meta.sources`.

    Returns:
        Their names, `ANIL, MAML, ...`.
    """
    classes = (getattr(module, name) for name in module.__all__)
    found = [c for c in classes if inspect.isclass(c) and issubclass(c, bases) and not _is_base(public_path(c))]
    return ", ".join(sorted(c.__name__ for c in found))


FIT = """usage: lightning-meta fit --config NAME|FILE [options]

Train a model, keep its best and last checkpoints, and test the best.

  --config NAME|FILE    What is trained; `lightning-meta configs` lists names.
  --name NAME           Name of the run; by default the configuration's.
  --runs FOLDER         Folder of all runs; by default runs.
  --seed_everything N   Seed of all generators; by default 0.
  --ckpt_path RUN|last  Go on from this run, or from the newest of this name.
  --threads N           Threads of the processor; by default torch's choice.
  --print_config        Print the whole configuration, and train nothing.

Every option of the configuration can be given behind it:
  --model.NAME          such as --model.inner_lr 0.1 or --model ProtoNet
  --data.NAME           such as --data.shots 5 or --data.source.root FOLDER
  --trainer.NAME        such as --trainer.max_steps 1000, --trainer.devices 2,
                        --trainer.accelerator cpu, --trainer.precision 16
  --checkpoint.NAME     such as --checkpoint.monitor val/loss

"""

TEST = """usage: lightning-meta test --ckpt_path RUN [options]

Test a trained model, on its own test tasks or on others.

  --ckpt_path RUN       A run (its best checkpoint) or a checkpoint.
  --ways N[,N...]       Classes in a test task; several give a table.
  --shots K[,K...]      Support examples of a class; several give a table.
  --queries Q           Query examples of a class.
  --tasks T             Test tasks, of each way and shot.
  --task_list FILE      A file that lists the test tasks; none are drawn.
  --steps S             Inner steps, for methods with an inner loop.
  --batch_norm WHICH    transductive, inductive or running: the statistics that
                        normalise query examples.
  --config FILE         Other data than the run's own; --trust if the run names
                        classes of yours.
  --seed_everything N   Seed of all generators; by default the run's.
  --threads N           Threads of the processor; by default torch's choice.
  --data.NAME, --trainer.NAME
                        such as --data.source.root FOLDER, --trainer.devices 1

"""

MORE = """lightning-meta {command} --help_all lists every option, the Trainer's too;{of_model}
lightning-meta {command} --data.help EpisodicDataModule what a data module takes.
"""


def screen(command: str) -> str:
    """What `--help` prints for `fit` or `test`: it fits on a screen of 80 columns."""
    if command == "test":
        return f"{TEST}{MORE.format(command='test', of_model='')}"
    lists = {
        "Models": names_below((MetaModule, MultiTaskModule), lightning_meta),
        "Data": names_below((LightningDataModule,), lightning_meta),
        "Sources": names_below((Source, TaskGenerator, TaskSource), sources),
    }
    lines = [textwrap.fill(f"{name}: {names}", 80, subsequent_indent="  ") for name, names in lists.items()]
    of_model = "\nlightning-meta fit --model.help MAML what a model takes,"
    return f"{FIT}{chr(10).join(lines)}\n\n{MORE.format(command='fit', of_model=of_model)}"


class Parser(LightningArgumentParser):
    """Lightning's, whose help is short enough to read; the help of a class is given by a parser of the same type.

    Args:
        *args: Lightning's.
        short_help: `fit` or `test`: the command whose `--help` is one screen.
        **options: Lightning's.
    """

    def __init__(self, *args: Any, short_help: str | None = None, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options})
        self._short_help = short_help
        if short_help is not None:
            self.add_argument("--help_all", action=_HelpAll, help="Show every option and exit.")

    def format_help(self, *args: Any) -> str:
        """One screen where there is one."""
        return super().format_help(*args) if self._short_help is None else screen(self._short_help)

    def _load_config_parser_mode(self, content: str, *args: Any, **options: Any) -> Namespace:
        """Read a configuration, of an earlier version as well."""
        return super()._load_config_parser_mode(renamed(content), *args, **options)


class _HelpAll(argparse.Action):
    """Prints every option."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, Parser)
        parser._short_help = None
        parser.print_help()
        parser.exit()
