"""What our own classes say of their arguments, told in options of the command line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import Namespace

from lightning_meta.errors import UserError

_FIRST_WORD = re.compile(r"(\w+)(?=: |, | \+ )")
_SECTION = re.compile(r"(?:checkpoint|trainer)\.\w+")


def with_prefix(message: str, prefix: str, arguments: Collection[str]) -> str | None:
    """A message that begins with the name of an argument, with the option in its place; None where it does not.

    Args:
        message: Such as "shots: at least 1 is needed".
        prefix: What stands before the argument in the option, such as "data.init_args.".
        arguments: The names.
    """
    named = _FIRST_WORD.match(message)
    return f"--{prefix}{message}" if named and named[1] in arguments else None


@contextmanager
def told_of_options(config: Namespace) -> Iterator[None]:
    """Tell of options where data, model and Trainer, at work together, complain about an argument.

    Raises:
        UserError: What was raised, in options.
    """
    try:
        yield
    except UserError as error:
        told = as_option(error, config)
        if told is error:
            raise
        raise told from error


def as_option(error: UserError, config: Namespace) -> UserError:
    """An error in options where it names an argument.

    Args:
        error: Such as "meta_batch_size: 1 tasks cannot be shared by 4 ranks".
        config: All options.

    Returns:
        The error with `--data.init_args.meta_batch_size`; the same where it names no argument.
    """
    message = str(error)
    if _SECTION.match(message):
        return UserError(f"--{message}")
    places = [*_objects(config.get("data"), "data"), *_objects(config.get("model"), "model")]
    places.append(("trainer.", list(vars(config.get("trainer", Namespace())))))
    told = (with_prefix(message, prefix, arguments) for prefix, arguments in places)
    return next((UserError(text) for text in told if text), error)


def _objects(spec: Any, path: str) -> Iterator[tuple[str, list[str]]]:
    """The objects of a configuration, the outer one first: the prefix of its options, and its arguments."""
    if not isinstance(spec, Namespace) or "class_path" not in spec:
        return
    given = vars(spec.get("init_args") or Namespace())
    yield f"{path}.init_args.", list(given)
    for name, value in given.items():
        yield from _objects(value, f"{path}.init_args.{name}")
