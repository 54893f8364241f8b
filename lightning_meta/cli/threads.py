"""`--threads N`, which every command takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from lightning_meta.errors import UserError
from lightning_meta.reading import is_number

OPTION = "--threads"
OWN = ("ladder", "sweep")  # they hand the number on to the runs that they start


@contextmanager
def using_threads(command: str, options: Sequence[str]) -> Iterator[list[str]]:
    """Let torch use so many threads of the processor while a command runs.

    Args:
        command: Its name.
        options: Its options.

    Yields:
        The other options.

    Raises:
        UserError: No positive whole number.
    """
    rest, given = list(options), None
    if command not in OWN:
        rest, given = _taken(rest)
    if given is None:
        yield rest
        return
    if not is_number(given) or not 1 <= int(given) <= 4096:
        raise UserError(f"{OPTION}: a whole number from 1 on is needed, got {given!r}")
    before = torch.get_num_threads()
    torch.set_num_threads(int(given))
    try:
        yield rest
    finally:
        torch.set_num_threads(before)


def _taken(options: list[str]) -> tuple[list[str], str | None]:
    """The options without `--threads`, and its value; the last one holds."""
    rest: list[str] = []
    given: str | None = None
    waiting = iter(options)
    for option in waiting:
        name, equals, value = option.partition("=")
        if name == OPTION:
            given = value if equals else next(waiting, "")
        else:
            rest.append(option)
    return rest, given
