"""How messages name an argument of `lightning_meta.fit`: as an argument in Python, as an option on the command line.

>>> as_argument("trainer.max_steps"), as_argument("resume", "last")
('max_steps', "resume='last'")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from lightning_meta.errors import UserError

Naming: TypeAlias = Callable[..., str]
"""A function of a name, such as `trainer.max_steps` or `resume`, and optionally a value to show."""


def as_argument(name: str, *value: Any) -> str:
    """The argument as written in Python, with its value if one is given."""
    if value and name.startswith("checkpoint."):
        return f"checkpoint=RunCheckpoint({name.removeprefix('checkpoint.')}={value[0]!r})"
    return name.removeprefix("trainer.") + "".join(f"={v!r}" for v in value)


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Remove the section from the start of error messages: `trainer.max_steps` is the argument `max_steps` of `fit`."""
    try:
        yield
    except UserError as error:
        error.args = (re.sub(r"^(trainer|model|data)\.(?=[a-z])", "", str(error)),)
        raise
