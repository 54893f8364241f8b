"""A parser that raises its errors."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lightning_meta.errors import UserError


class PlainParser(argparse.ArgumentParser):
    """Parser of a command that passes unknown options to `fit`; errors are raised as `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`."""
        raise UserError(message)
