"""Train the module of a test class on one or more ranks, and save its weights to a folder.

python -m lightning_meta.testing.ranks FILE CLASS FOLDER WORLD
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from lightning_meta.functional.ranks import leave_group


def reach(cls: type) -> tuple[str, str]:
    """The file and the name by which another process finds a test class."""
    assert "<locals>" not in cls.__qualname__, (
        f"{cls.__qualname__} is defined in a function; expected a class at the top level of its file, which other "
        "processes can import"
    )
    return inspect.getfile(cls), cls.__qualname__


def found(file: str, name: str) -> Any:
    """Import the test class; a file in a package is imported through it, so that relative imports work."""
    path = Path(file)
    parts = [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    sys.path[:0] = [str(folder), str(Path.cwd())]
    return getattr(importlib.import_module(".".join(parts)), name)


def train(file: str, name: str, folder: str, world: int) -> None:
    """Train for three steps in float64; rank 0 saves the weights."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    tests = found(file, name)()
    module = tests.made(exact=True)
    trainer = tests.trainer(3, devices=world, strategy="ddp" if world > 1 else "auto", precision="64-true")
    torch.manual_seed(0)  # so that weights made in `fit` are the same on all ranks
    trainer.fit(module, datamodule=tests.make_data())
    if trainer.is_global_zero:
        torch.save({n: p.detach() for n, p in module.named_parameters()}, Path(folder) / "weights.pt")
    leave_group()


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
