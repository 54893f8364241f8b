"""Messages about a table, which are logged again when the table comes from the cache."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Message(NamedTuple):
    """A logged message.

    Attributes:
        logger: Name of the logger.
        level: Level of the message, such as `logging.WARNING`.
        text: The message with its arguments.
    """

    logger: str
    level: int
    text: str


_messages: ContextVar[list[Message] | None] = ContextVar("messages", default=None)


def say(logger: logging.Logger, level: int, message: str, *args: object) -> None:
    """Log a message about a table, and note it for `noting`, whatever the level of the logger."""
    logger.log(level, message, *args, stacklevel=2)
    if (messages := _messages.get()) is not None:
        messages.append(Message(logger.name, level, message % args))


@contextmanager
def noting() -> Iterator[list[Message]]:
    """Yield the list to which each message within this context is added."""
    messages: list[Message] = []
    token = _messages.set(messages)
    try:
        yield messages
    finally:
        _messages.reset(token)
