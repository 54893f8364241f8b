"""The parser of `fit`, `test` and `predict`, and its help."""

from __future__ import annotations

import argparse
import ast
import functools
import json
import operator
import typing
from typing import Any

from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_meta import nn
from lightning_meta.cli.parsing import CLASS_PATH, own_path
from lightning_meta.cli.screens import is_base, screen
from lightning_meta.data import Augmentation
from lightning_meta.import_paths import public_path
from lightning_meta.migration import EARLIER_PATH, current_path

# typing takes `Union[int, float]` and `Union[float, int]` as equal and returns whichever was created first. With the
# second, `--trainer.limit_val_batches 1` is parsed as 1.0, which means all batches instead of one.
for _name, _hint in Trainer.__init__.__annotations__.items():
    if {int, float} <= set(typing.get_args(_hint)):
        _kinds = [int, float, *(kind for kind in typing.get_args(_hint) if kind not in (int, float))]
        Trainer.__init__.__annotations__[_name] = functools.reduce(operator.or_, _kinds)

MANY = 20  # largest number of classes to list


class HelpFormatter(DefaultHelpFormatter):
    """Lists the classes that an option accepts, without base classes, and of networks only those of this package."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, listed = super()._get_help_string(action), getattr(action, "extra_help", str)()
        return text.replace(listed, _shortened(listed)) if listed else text


def _shortened(listed: str) -> str:
    head, colon, paths = listed.partition(": ")
    classes = [path for path in paths.split(", ") if not is_base(path)]
    if len(classes) <= MANY:
        return f"{head}{colon}{', '.join(classes)}"
    networks = {f"{nn.__name__}.{name}" for name in nn.__all__ if hasattr(getattr(nn, name), "stages")}
    augmentations = [path for path in classes if path == public_path(Augmentation)]
    shown = augmentations or [path for path in classes if path in networks] or classes[:MANY]
    others = len(classes) - len(shown)
    named = f"{', '.join(shown)}, and {others} others of torch and other packages, or custom classes, by path"
    return f"{head}{colon}{named}"


class Parser(LightningArgumentParser):
    """Lightning's parser with shorter help. jsonargparse uses the same class for the arguments of nested classes.

    Args:
        *args: Arguments of Lightning's parser.
        short_help: The command whose `--help` is one screen, see `screen`; None for nested classes.
        **options: Options of Lightning's parser.
    """

    def __init__(self, *args: Any, short_help: str | None = None, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options})
        self._short_help = short_help
        if short_help is not None:
            self.add_argument("--help_all", action=_HelpAll, help="Explain every option and exit.")

    def format_help(self, *args: Any) -> str:
        """The help; one screen for a command."""
        return super().format_help(*args) if self._short_help is None else screen(self._short_help)

    def _parse_optional(self, arg_string: str) -> Any:
        """Find the option that an argument sets, with `null` as None in the arguments of nested classes, too.

        For `--data.source.delimiter null` jsonargparse passes `--delimiter=None` to the parser of the class, in
        Python's syntax, which would be read as text.
        """
        arg_string = _with_null(arg_string) if self._short_help is None else arg_string
        return super()._parse_optional(arg_string)  # type: ignore[no-untyped-call]

    def _load_config_parser_mode(self, content: str, *args: Any, **options: Any) -> Namespace:
        """Read a configuration; names of earlier versions and short names of networks are replaced.

        A loader, the public way, would read every single value as well.
        """
        return super()._load_config_parser_mode(with_current_paths(content), *args, **options)


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
        parser._short_help = None
        parser.print_help()
        parser.exit()
