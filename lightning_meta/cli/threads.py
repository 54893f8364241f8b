"""The option `--threads N` of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from lightning_meta.errors import UserError
from lightning_meta.reading import is_number

OPTION = "--threads"
OWN = ("ladder", "sweep")  # commands that pass the number to the runs that they start


class PlainParser(argparse.ArgumentParser):
    """Parser of a command that passes unknown options to `fit`; errors are raised as `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`."""
        raise UserError(message)


@contextmanager
def using_threads(command: str, options: Sequence[str]) -> Iterator[list[str]]:
    """Set torch's number of threads while a command runs.

    Yields:
        The options without `--threads`.

    Raises:
        UserError: The value is not a whole number from 1 to 4096.
    """
    parser = PlainParser(add_help=False, allow_abbrev=False)
    if command not in OWN:
        parser.add_argument(OPTION, nargs="?", const="")
    parsed, rest = parser.parse_known_args(options)
    value = getattr(parsed, "threads", None)
    if value is None:
        yield rest
        return
    if not is_number(value) or not 1 <= int(value) <= 4096:
        raise UserError(f"{OPTION}: expected a whole number of at least 1, got {value!r}")
    import torch  # takes seconds, and most commands are not given the option

    before = torch.get_num_threads()
    torch.set_num_threads(int(value))
    try:
        yield rest
    finally:
        torch.set_num_threads(before)
