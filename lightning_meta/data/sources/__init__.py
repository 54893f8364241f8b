"""The path that `lightning_meta.sources` had in version 0.1; code that imports from it still runs."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    place = "lightning_meta.data" if name in ("Source", "TaskSource", "TaskGenerator") else "lightning_meta.sources"
    return getattr(importlib.import_module(place), name)
