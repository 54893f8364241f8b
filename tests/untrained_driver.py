"""Keeps and tests a frozen model on one or two ranks of DDP.

    python -m tests.untrained_driver FOLDER WORLD

The run is `FOLDER/runs/<WORLD>/0`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import lightning_meta as lm
from lightning_meta.functional.ranks import leave_group
from lightning_meta.nn import Frozen
from lightning_meta.testing import toys
from tests.methods import conv4


def keep(folder: Path, world: int, steps: int = 0) -> lm.Run:
    """Train a frozen model for so many steps."""
    torch.manual_seed(0)
    return lm.fit(
        lm.ProtoNet(Frozen(conv4())),
        toys.pictures(),
        name=str(world),
        runs=folder / "runs",
        seed=0,
        max_steps=steps,
        accelerator="cpu",
        devices=world,
        strategy="ddp",
        enable_progress_bar=False,
    )


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
    leave_group()
