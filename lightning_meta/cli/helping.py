"""What `--help_all` shows of classes that may stand for an option, and the parser that shows it."""

from __future__ import annotations

import argparse
import ast
import functools
import json
import operator
import re
import typing
from collections.abc import Sequence
from typing import Any

from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_meta import nn
from lightning_meta.cli.screens import is_base, screen
from lightning_meta.configuration import public_path
from lightning_meta.data import Augmentation
from lightning_meta.migration import renamed

# `Union[int, float]` is whichever of it and `Union[float, int]` was made first, as typing takes them for equal. Read as
# the second, `--trainer.limit_val_batches 1` is 1.0, which is all batches and not one.
for _name, _hint in Trainer.__init__.__annotations__.items():
    if {int, float} <= set(typing.get_args(_hint)):
        _kinds = [int, float, *(kind for kind in typing.get_args(_hint) if kind not in (int, float))]
        Trainer.__init__.__annotations__[_name] = functools.reduce(operator.or_, _kinds)

MANY = 20  # classes that are listed at most


class HelpFormatter(DefaultHelpFormatter):
    """Lists the classes that an option may name: no bases, and of hundreds of modules this package's own networks."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return re.sub(r"(known subclasses: )([^)]*)", _shortened, super()._get_help_string(action))


def _shortened(found: re.Match[str]) -> str:
    classes = [path for path in found[2].split(", ") if not is_base(path)]
    if len(classes) <= MANY:
        return f"{found[1]}{', '.join(classes)}"
    networks = {f"{nn.__name__}.{name}" for name in nn.__all__ if hasattr(getattr(nn, name), "stages")}
    augmentations = [path for path in classes if path == public_path(Augmentation)]  # no network is one
    shown = augmentations or [path for path in classes if path in networks] or classes[:MANY]
    others = len(classes) - len(shown)
    return f"{found[1]}{', '.join(shown)}, and {others} others of torch and elsewhere, or your own, by their path"


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

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Namespace:
        """Parse the options, with `null` as None in the arguments of nested classes, too.

        For `--data.source.delimiter null` jsonargparse passes `--delimiter=None` to the parser of the class, in
        Python's syntax, which would be read as text.
        """
        if self._short_help is None and args is not None:
            args = [_with_null(arg) for arg in args]
        parsed: Namespace = super().parse_args(args, *rest, **options)
        return parsed

    def _load_config_parser_mode(self, content: str, *args: Any, **options: Any) -> Namespace:
        """Read a configuration, of an earlier version as well."""
        return super()._load_config_parser_mode(renamed(content), *args, **options)


def _with_null(option: str) -> str:
    """Write `--a=None` and `--a={'b': None}` in YAML's syntax."""
    name, equals, value = option.partition("=")
    if "None" not in value:
        return option
    try:
        return f"{name}{equals}{json.dumps(ast.literal_eval(value))}"
    except (SyntaxError, TypeError, ValueError):  # text that contains the word
        return option


class _HelpAll(argparse.Action):
    """Prints every option."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, Parser)
        parser._short_help = None
        parser.print_help()
        parser.exit()
