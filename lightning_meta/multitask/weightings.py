"""The path that `lightning_meta.weightings` had in version 0.1; code that imports from it still runs."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("lightning_meta.weightings"), name)
