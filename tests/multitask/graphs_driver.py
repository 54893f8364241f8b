"""Trains multi-task modules without and with recorded steps, on the ranks of a real Trainer.

    python -m tests.multitask.graphs_driver FOLDER WORLD

Every rank writes `rank_<r>.pt` in FOLDER; `tests/multitask/test_graphed_steps.py` compares them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from lightning_meta.functional.ranks import leave_group
from lightning_meta.multitask import Independent, MultiHead, MultiTaskModule
from lightning_meta.nn import MLP
from lightning_meta.weightings import FAMO, Equal, Uncertainty
from tests.multitask.ddp_driver import DATA
from tests.nn.recorder import fitted

CASES = {
    "Equal, missing labels": Equal,
    "Uncertainty, some tasks": Uncertainty,
    "FAMO, all tasks": FAMO,
    "Independent, all tasks": None,
}


def train(world: int, case: str, graph: str) -> MultiTaskModule:
    """A few epochs; several steps of each rank have the same shapes."""
    weighting = CASES[case]

    def make(**options: Any) -> MultiTaskModule:
        torch.manual_seed(0)
        network = MLP(4, (8,))
        if weighting is None:
            return Independent(network, "vmap", **options)
        return MultiHead(network, weighting=weighting(), **options)

    ranks = {"devices": world, "strategy": "ddp", "precision": "64-true", "max_epochs": 4}
    return fitted(make, graph, DATA[case.partition(", ")[2]](), **ranks)


def run(world: int) -> dict[str, Any]:
    found = {}
    for case in CASES:
        plain, module = (train(world, case, graph) for graph in ("off", "auto"))
        graphs = module._graphs
        states = [{n: t for n, t in m.state_dict().items() if isinstance(t, torch.Tensor)} for m in (plain, module)]
        found[case] = (*states, graphs.replays, graphs.obstacle)
    return found


if __name__ == "__main__":
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(run(world), folder / f"rank_{os.environ.get('LOCAL_RANK', '0')}.pt")
    leave_group()
