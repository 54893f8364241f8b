"""The one kind of error that is the user's to mend."""

from typing import get_args

LONGEST = 2000  # characters of a line


class UserError(ValueError):
    """A mistake in what the user gave: a configuration, a file, a label or a shape.

    The message is one line: the option or file, what was received, what was expected and how to mend it. The
    command line prints it without a traceback and ends with exit status 2.

    Args:
        message: The line. What a terminal would obey, as the name of a file may hold, is written as an escape.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:  # it shows a name out of a file, which may hold one of megabytes
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__("".join(c if c.isprintable() else _shown(c) for c in message))


def _shown(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def one_of(name: str, value: str, choices: object) -> None:
    """Refuse a value that a `typing.Literal` does not list.

    Args:
        name: Of the argument.
        value: What was given.
        choices: The Literal.

    Raises:
        UserError: The value, and those to choose from.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise UserError(f"{name}: expected {' or '.join(map(repr, allowed))}, got {value!r}")


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite; the last good checkpoint is kept.

    Attributes:
        on_all_ranks: Whether every rank of a distributed run raises the same.
    """

    on_all_ranks = False
