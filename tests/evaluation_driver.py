"""Evaluates a grid of ways and shots, and a list of tasks of differing sizes, on one or two ranks.

    python -m tests.evaluation_driver FOLDER WORLD

Every rank writes `rank_<r>.json` in FOLDER; `tests/test_evaluate.py` compares them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning_meta as lm
from lightning_meta.functional.ranks import leave_group
from tests.ddp_driver import Tiny, modules, trainer


def evaluated(world: int, folder: Path) -> dict[str, Any]:
    """The scores that each rank receives."""
    module = modules()["protonet"]
    strategy: dict[str, Any] = {"devices": world, "strategy": "ddp" if world > 1 else "auto", "accelerator": "cpu"}
    data = lm.EpisodicDataModule(Tiny(), 3, 2, 3, test_tasks=9, evaluation_meta_batch_size=2)
    grid = lm.evaluate(module, data, ways=[2, 4], shots=[1, 3], **strategy)
    listed = lm.EpisodicDataModule(Tiny(), 3, 2, 3, test_task_list=folder / "list.csv")
    runner = trainer(world, folder)
    runner.test(module, datamodule=listed, verbose=False)
    predictions = {name: array.tolist() for name, array in module.test_report["predictions"].items()}
    scores = [[row["score"] for row in each.per_task] for each in grid]
    return {"grid": scores, "intervals": [each.interval for each in grid], "listed": predictions}


if __name__ == "__main__":
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    found = evaluated(world, folder)
    (folder / f"rank_{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(found))
    leave_group()
