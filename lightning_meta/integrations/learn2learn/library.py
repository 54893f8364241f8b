"""The learn2learn package, imported when it is first needed."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from lightning_meta.errors import UserError


def library() -> Any:
    """Import and return learn2learn.

    Raises:
        UserError: learn2learn is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gym is unmaintained, torchvision may lack its image library
        try:
            return importlib.import_module("learn2learn")
        except ModuleNotFoundError as error:
            raise UserError(
                f"learn2learn is not installed ({error}); `python scripts/build_learn2learn.py` builds it here"
            ) from error
