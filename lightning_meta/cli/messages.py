"""Parse the options of a command, and condense errors of the parser and of Lightning to one line.

The most frequent mistakes (a wrong name, class or type, a missing option) are found by `diagnosis`. For all other
errors, the message of the library is shown, with a reference to `--help`.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_meta.cli.diagnosis import LONGEST, Given
from lightning_meta.cli.helping import Parser
from lightning_meta.errors import UserError, reason_of

EXTRAS = {"wandb": "wandb", "optuna": "sweep", "onnx": "export", "onnxscript": "export"}  # extra by package


def passed(error: BaseException, command: str) -> str:
    """The message of another library in one line, with a reference to `--help`."""
    return f"{reason_of(error, LONGEST).rstrip(' .;')}; see lightning-meta {command} --help"


def of_lightning(error: BaseException, command: str) -> str | None:
    """The message for an error of Lightning or a missing package; None for another error."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        named = f"'lightning_meta[{EXTRAS[package]}]'" if package in EXTRAS else package
        return f"the package {package} is not installed; pip install {named}"
    # An error raised by Lightning's own code is wrong input; one raised by torch or a user's class is a bug.
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    by_lightning = modules and modules[-1].startswith(("lightning.", "lightning_util"))
    of_input = isinstance(error, ImportError | RuntimeError | TypeError | ValueError) and by_lightning
    return passed(error, command) if of_input or isinstance(error, MisconfigurationException) else None


@contextmanager
def parsing() -> Iterator[None]:
    """Turn errors inside the parser, such as for `config: false`, into one line.

    Raises:
        UserError: The parser failed. Its `ArgumentError` is passed on.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        said = f": {reason_of(error, LONGEST)}" if str(error) else ""
        reason = f"{type(error).__name__}{said}"[:LONGEST]
        raise UserError(f"the configuration cannot be read ({reason}); --print_config shows a valid one") from error


@parsing()
def parse(parser: Parser, args: Sequence[str], base: Mapping[str, Any] | None = None) -> Any:
    """Parse the options of a command, which change a base configuration.

    Raises:
        UserError: The option, what was received, what was expected, and a suggestion.
    """
    try:
        return parser.parse_args(list(args), namespace=None if base is None else parser.parse_object(base))
    except ArgumentError as error:
        Given(parser).check(args, base or {})
        raise UserError(passed(error, str(parser.command))) from error
