"""What messages call an argument of `lightning_meta.fit`: in Python by its name, on the command line by its option.

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
"""Takes a name, such as `trainer.max_steps` or `resume`, and optionally the value that is shown with it."""


def as_argument(name: str, *value: Any) -> str:
    """The argument as it is written in Python, with its value where one is shown."""
    if value and name.startswith("checkpoint."):
        return f"checkpoint=RunCheckpoint({name.removeprefix('checkpoint.')}={value[0]!r})"
    return name.removeprefix("trainer.") + "".join(f"={v!r}" for v in value)


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Remove the section of the configuration from the head of an error: `trainer.max_steps` is an argument of `fit`.

    Raises:
        UserError: The same error.
    """
    try:
        yield
    except UserError as error:
        error.args = (re.sub(r"^(trainer|model|data)\.(?=[a-z])", "", str(error)),)
        raise
