"""Convert arguments to the form that they have in `config.yaml`, which is that of the command's parser."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lightning_meta.describing import describe
from lightning_meta.import_paths import import_object
from lightning_meta.specifications import marked


def written(value: Any) -> Any:
    """Convert a value that `describe` accepts to plain data as the parser writes it.

    A class or a function is its path, a member of an enumeration its name. A `functools.partial` of anything but an
    optimiser or a schedule is `{"instance": <its function>}`, as the parser cannot create it.

    >>> import torch
    >>> written({"act": torch.nn.ReLU, "lr": 0.1})
    {'act': 'torch.nn.ReLU', 'lr': 0.1}
    """
    return _in_words(describe(value))


def _in_words(spec: Any) -> Any:
    if isinstance(spec, list):
        return [_in_words(value) for value in spec]
    if not isinstance(spec, Mapping):
        return spec
    if not marked(spec, "import_path"):
        return {name: _in_words(value) for name, value in spec.items()}
    if "member" in spec:
        return spec["member"]
    path = _shortest(spec["import_path"])
    return {"instance": path} if "init_args" in spec else path


def _shortest(path: str) -> str:
    """The path of a class or function in the outermost package that exports it, as the parser writes it."""
    value = import_object(path)
    module, name = value.__module__.split("."), value.__qualname__
    packages = [".".join(module[: i + 1]) for i in range(len(module))]
    return next((f"{p}.{name}" for p in packages if getattr(sys.modules.get(p), name, None) is value), path)
