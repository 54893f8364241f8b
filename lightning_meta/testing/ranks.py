"""Train the modules of test classes on one or more ranks, and save their weights to a folder.

python -m lightning_meta.testing.ranks FOLDER WORLD FILE CLASS [CLASS ...]
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from torch import Tensor

from lightning_meta.functional.ranks import leave_group

# Seconds to start the ranks and to train each class, enough for a loaded machine; ranks that wait for each other would
# never end.
START, EACH = 600, 30


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


def weights_on(world: int, file: str, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The weights of each class after three steps on `world` ranks, trained in processes of their own."""
    ours = ("LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR", "NODE_RANK", "WORLD_SIZE")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    limit = START + EACH * len(names)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lightning_meta.testing.ranks", folder, str(world), file, *names]
        said = Path(folder) / "said"
        with said.open("w") as output:
            process = subprocess.Popen(
                command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed = said.read_text()[-2000:]
        assert process.returncode == 0, f"training on {world} rank(s) failed, or took more than {limit} s: {printed}"
        return {name: torch.load(Path(folder) / f"{name}.pt", weights_only=True) for name in names}


def train(folder: str, world: int, file: str, names: list[str]) -> None:
    """Train each for three steps in float64, one after the other; rank 0 saves the weights as `<class>.pt`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    for name in names:
        print(f"{name}:", flush=True)  # what follows in the output, an error for instance, is about this class
        tests = found(file, name)()
        seed_everything(0, verbose=False)  # which DDP seeds with again: the weights must not depend on it
        module = tests.made(exact=True)
        trainer = tests.trainer(3, devices=world, strategy="ddp" if world > 1 else "auto", precision="64-true")
        trainer.fit(module, datamodule=tests.make_data())
        if trainer.is_global_zero:
            torch.save({n: p.detach() for n, p in module.named_parameters()}, Path(folder) / f"{name}.pt")
    leave_group()


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
