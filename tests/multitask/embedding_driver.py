"""Trains embeddings of categories on one or two ranks of a real Trainer, and notes what each rank has.

python -m tests.multitask.embedding_driver FOLDER WORLD
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch

import lightning_meta as lm
from lightning_meta.nn import TabularMLP
from tests.multitask.test_table_predictions import houses, table, write
from tests.multitask.toys import trainer


def run(world: int, folder: Path) -> dict[str, torch.Tensor]:
    """The weights after five steps of Adam."""
    rows = write(folder / f"rank_{os.environ.get('LOCAL_RANK', '0')}.csv", houses())
    data = lm.MultiTaskDataModule(table(rows, categories="codes"), batch_size=16, seed=0)
    torch.manual_seed(0)
    module = lm.MultiHead(TabularMLP((8, 8)), optimizer=partial(torch.optim.Adam, lr=0.01))
    strategy = {"devices": world, "strategy": "ddp" if world > 1 else "auto", "limit_val_batches": 0}
    trainer(5, folder, precision="64-true", **strategy).fit(module, datamodule=data)
    return {name: p.detach() for name, p in module.named_parameters()}


if __name__ == "__main__":
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(run(world, folder), folder / f"rank_{os.environ.get('LOCAL_RANK', '0')}.pt")
