"""Errors that report mistakes of the user."""

import difflib
from collections.abc import Iterable
from inspect import unwrap
from types import FrameType
from typing import Any, get_args

LONGEST = 2000  # characters of a line


class UserError(ValueError):
    """A mistake in the user's input, such as a configuration, a file, a label or a shape.

    The message is one line: the option or file, what was received, what was expected, and how to correct it. The
    command line prints it without a traceback and ends with exit status 2.

    Args:
        message: The line. Control characters, which a file name may contain, are escaped.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:  # a name in a file may have megabytes
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__("".join(c if c.isprintable() else _shown(c) for c in message))


def _shown(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def reason_of(error: BaseException, longest: int | None = None) -> str:
    r"""Return the message of an error in one line; the name of its class if it has no message.

    >>> reason_of(ValueError("expected a number,\n  got 'a'"))
    "expected a number, got 'a'"

    Args:
        error: The error, such as one of another library.
        longest: Number of characters after which the line is cut; None for all of it.
    """
    return " ".join(str(error).split())[:longest] or type(error).__name__


def raised_in(error: BaseException, *functions: Any) -> bool:
    """Whether one of some functions, written in Python, raised an error itself or by a call of compiled code.

    >>> def fail():
    ...     raise ValueError
    >>> try:
    ...     fail()
    ... except ValueError as error:
    ...     raised_in(error, fail), raised_in(error, reason_of)
    (True, False)

    Args:
        error: The error.
        *functions: The functions or methods.
    """
    frame = _innermost(error)
    return frame is not None and any(frame.f_code is unwrap(function).__code__ for function in functions)


def raised_in_package(error: BaseException, package: str) -> bool:
    """Whether code of a package or module raised an error, itself or by a call of compiled code.

    Args:
        error: The error.
        package: Its name, such as `torch.distributed`.
    """
    frame = _innermost(error)
    return frame is not None and f"{frame.f_globals.get('__name__')}.".startswith(f"{package}.")


def _innermost(error: BaseException) -> FrameType | None:
    """The frame of Python code that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame


def one_of(name: str, value: str, choices: object) -> None:
    """Refuse a value that is not in a `typing.Literal`.

    Args:
        name: Name of the argument.
        value: The given value.
        choices: The Literal.

    Raises:
        UserError: The value is not in the Literal.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise UserError(f"{name}: expected {' or '.join(map(repr, allowed))}, got {value!r}{meant(value, allowed)}")


def meant(value: object, choices: Iterable[object]) -> str:
    """Suggest the most similar choice, as the end of a message; "" if none is similar.

    >>> meant("MultiHed", ["Independent", "MultiHead"])
    "; did you mean 'MultiHead'?"
    """
    close = similar(str(value), [choice for choice in choices if isinstance(choice, str)])
    return f"; did you mean {close!r}?" if close else ""


def similar(name: str, choices: Iterable[str]) -> str | None:
    """Return the most similar of several names, whatever its case; None if none is similar.

    >>> similar("Maml", ["MAML", "ANIL"])
    'MAML'
    """
    choices = list(choices)
    same = [choice for choice in choices if choice.lower() == name.lower()]
    return next(iter(same or difflib.get_close_matches(name, choices, n=1)), None)


def some_of(names: Iterable[str], most: int = 10) -> str:
    """List the first of several names, and say how many more there are.

    >>> some_of(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite; the last good checkpoint is kept.

    Attributes:
        on_all_ranks: Whether every rank of a distributed run raises the same.
    """

    on_all_ranks = False
