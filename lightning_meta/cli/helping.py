"""The parser of `fit`, `test` and `predict`, and its help."""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import json
import operator
import textwrap
import typing
from abc import ABC
from types import ModuleType
from typing import Any

from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer

import lightning_meta
from lightning_meta import nn, sources
from lightning_meta.cli.declared import options_of
from lightning_meta.cli.options import SECTIONS
from lightning_meta.cli.parsing import CLASS_PATH, own_path
from lightning_meta.data import Augmentation
from lightning_meta.data.source import Source, TaskGenerator, TaskSource
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_object, public_path
from lightning_meta.meta import MetaModule
from lightning_meta.migration import EARLIER_PATH, current_path
from lightning_meta.multitask import MultiTaskModule

# typing takes `Union[int, float]` and `Union[float, int]` as equal and returns whichever was created first. With the
# second, `--trainer.limit_val_batches 1` is parsed as 1.0, which means all batches instead of one.
for _name, _hint in Trainer.__init__.__annotations__.items():
    if {int, float} <= set(typing.get_args(_hint)):
        _kinds = [int, float, *(kind for kind in typing.get_args(_hint) if kind not in (int, float))]
        Trainer.__init__.__annotations__[_name] = functools.reduce(operator.or_, _kinds)

MANY = 20  # largest number of classes to list
# Base classes of other packages, which are not useful in a configuration; those of this package inherit from `ABC`.
FRAMEWORK_BASES = (LightningModule, LightningDataModule, Callback, Optimizer)
FIT = """All options of the configuration can be set on the command line:
  --model.NAME          such as --model.inner_lr 0.1 or --model ProtoNet
  --data.NAME           such as --data.shots 5 or --data.source.root FOLDER
  --trainer.NAME        such as --trainer.max_steps 1000, --trainer.devices 2,
                        --trainer.precision bf16-mixed
  --checkpoint.NAME     such as --checkpoint.monitor val/loss

{lists}

lightning-meta fit --help_all lists all options, including the Trainer's.
lightning-meta fit --config NAME --print_config prints them with their values.
lightning-meta fit --model.help MAML lists those of a model.
lightning-meta fit --data.help EpisodicDataModule lists those of a data module."""


def is_base(cls: Any) -> bool:
    """Whether a class is a base class, which a configuration cannot name."""
    return inspect.isclass(cls) and (cls in FRAMEWORK_BASES or ABC in cls.__bases__ or inspect.isabstract(cls))


def end_of_fit() -> str:
    """The end of the `--help` of `fit`, with the classes of this package that a configuration can name."""
    kinds: dict[str, tuple[ModuleType, tuple[type, ...]]] = {
        "Models": (lightning_meta, (MetaModule, MultiTaskModule)),
        "Data": (lightning_meta, (LightningDataModule,)),
        "Sources": (sources, (Source, TaskGenerator, TaskSource)),
    }
    lists = []
    for kind, (module, bases) in kinds.items():
        classes = (getattr(module, name) for name in module.__all__)
        names = sorted(c.__name__ for c in classes if inspect.isclass(c) and issubclass(c, bases) and not is_base(c))
        lists.append(textwrap.fill(f"{kind}: {', '.join(names)}", 80, subsequent_indent="  "))
    return FIT.format(lists="\n".join(lists))


class HelpFormatter(DefaultHelpFormatter):
    """Lists the classes that an option accepts, without base classes, and of networks only those of this package."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, listed = super()._get_help_string(action), getattr(action, "extra_help", str)()
        return text.replace(listed, _shortened(listed)) if listed else text


def _is_base_path(path: str) -> bool:
    try:
        return is_base(import_object(path))
    except UserError:  # a class without an import path
        return False


def _shortened(listed: str) -> str:
    head, colon, paths = listed.partition(": ")
    classes = [path for path in paths.split(", ") if not _is_base_path(path)]
    if len(classes) <= MANY:
        return f"{head}{colon}{', '.join(classes)}"
    networks = {f"{nn.__name__}.{name}" for name in nn.__all__ if hasattr(getattr(nn, name), "stages")}
    augmentations = [path for path in classes if path == public_path(Augmentation)]
    shown = augmentations or [path for path in classes if path in networks] or classes[:MANY]
    others = len(classes) - len(shown)
    named = f"{', '.join(shown)}, and {others} others of torch and other packages, or custom classes, by path"
    return f"{head}{colon}{named}"


class Parser(LightningArgumentParser):
    """The parser of a command, with a short `--help`. jsonargparse makes one without a command for each class."""

    def __init__(self, *args: Any, command: str | None = None, **options: Any) -> None:
        if command is not None:
            options |= {"prog": f"lightning-meta {command}", "exit_on_error": False, "allow_abbrev": False}
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options})
        self.command = command
        self._short = command is not None

    def option(self, named: str, kind: Any, text: str, **more: Any) -> None:
        """Add an option, such as `--out FILE` or `--keep COLUMN...`, or a switch, whose kind is bool."""
        name, _, value = named.partition(" ")
        if kind is bool:
            more["action"] = "store_true"
        else:
            more |= {"type": kind, "metavar": value.removesuffix("...")}
        if value.endswith("..."):
            more |= {"nargs": "+", "action": "extend"}
        self.add_argument(name, help=text, **more)

    def add_help_all(self) -> None:
        """Add `--help_all`, for a command whose `--help` leaves out the options of a section."""
        self.add_argument("--help_all", action=_HelpAll, help="Explain every option and exit.")

    def format_help(self, *args: Any) -> str:
        """The help; for a command a line or two for each of its own options."""
        if not self._short:
            return super().format_help(*args)
        lines = [f"usage: {self.usage}", "", textwrap.fill(str(self.description), 80), ""]
        for name, action in options_of(self).items():
            if "." not in name and name not in SECTIONS:
                value = "" if action.nargs == 0 else f"{action.metavar}{'...' * (action.nargs == '+')}"
                lines.append(_entry(f"--{name} {value}" if action.option_strings else value, action.help))
        lines.append(_entry("--threads N", "Threads of the processor; by default torch's choice."))
        return "\n".join([*lines, *(["", self.epilog] if self.epilog else []), ""])

    def _parse_optional(self, arg_string: str) -> Any:
        """Find the option that an argument sets, with `null` as None in the arguments of nested classes, too.

        For `--data.source.delimiter null` jsonargparse passes `--delimiter=None` to the parser of the class, in
        Python's syntax, which would be read as text.
        """
        arg_string = _with_null(arg_string) if self.command is None else arg_string
        return super()._parse_optional(arg_string)  # type: ignore[no-untyped-call]

    def _load_config_parser_mode(self, content: str, *args: Any, **options: Any) -> Namespace:
        """Read a configuration; names of earlier versions and short names of networks are replaced.

        A loader, the public way, would read every single value as well.
        """
        return super()._load_config_parser_mode(with_current_paths(content), *args, **options)


def _entry(option: str, text: str | None) -> str:
    return textwrap.fill(f"  {option:<21} {text}", 80, subsequent_indent=" " * 24)


def _with_null(option: str) -> str:
    """Write `--a=None` and `--a={'b': None}` in YAML's syntax."""
    name, equals, value = option.partition("=")
    if "None" not in value:
        return option
    try:
        literal = ast.literal_eval(value)
        written = json.dumps(literal, allow_nan=False)
    except (SyntaxError, TypeError, ValueError):  # text that contains the word
        return option
    return f"{name}{equals}{written}" if json.loads(written) == literal else option  # JSON has no other keys than text


def with_current_paths(content: str) -> str:
    """Replace names of earlier versions and short names of networks in the text of a configuration."""
    return CLASS_PATH.sub(own_path, EARLIER_PATH.sub(current_path, content))


class _HelpAll(argparse.Action):
    """Prints every option."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, Parser)
        parser._short, parser.epilog = False, None
        parser.print_help()
        parser.exit()
