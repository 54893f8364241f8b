"""The library itself, imported when it is first needed."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from lightning_meta.errors import UserError


def library() -> Any:
    """learn2learn.

    Raises:
        UserError: It is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unmaintained gym, a torchvision without its image library
        try:
            return importlib.import_module("learn2learn")
        except ModuleNotFoundError as error:
            raise UserError(
                f"learn2learn is not installed ({error}); `python scripts/build_learn2learn.py` builds it here"
            ) from error
