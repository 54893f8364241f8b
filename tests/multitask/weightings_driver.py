"""Trains with every weighting, and every aggregator of torchjd, on one or two ranks.

    python -m tests.multitask.weightings_driver FOLDER WORLD

Every rank writes `rank_<r>.pt` in FOLDER; `tests/multitask/test_weightings_ddp.py` compares them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchjd.aggregation as jd

from lightning_meta import weightings
from lightning_meta.functional.ranks import leave_group
from lightning_meta.weightings import Fixed, TorchJD, Weighting
from tests.multitask import ddp_driver

STATEFUL = ("ExcessMTL", "GradVac", "NashMTL", "PCD")  # they need every task in every step
OPTIONS: dict[str, dict[str, float]] = {
    "CAGrad": {"c": 0.5},
    "FairGrad": {"alpha": 1.0},
    "NashMTL": {"n_tasks": 4},
    "TrimmedMean": {"trim_number": 0},
}
OURS = (
    *("CAGrad", "DBMTL", "DynamicWeightAverage", "FAMO", "GeometricMean", "GradNorm", "IMTLL", "MGDA", "PCGrad"),
    *("RandomWeights", "STCH", "Uncertainty"),
)
THEIRS = (
    *("AlignedMTL", "CAGrad", "ConFIG", "DualProj", "ExcessMTL", "FairGrad", "GradDrop", "GradVac", "IMTLG", "Mean"),
    *("MGDA", "NashMTL", "PCD", "PCGrad", "Random", "Sum", "TrimmedMean", "UPGrad"),
)
KRUM = "Krum"  # of three tasks at least
BY_FEATURES: dict[str, Callable[[], Weighting]] = {
    **{
        f"{name}, rep_grad": partial(getattr(weightings, name), rep_grad=True)
        for name in ("CAGrad", "GradNorm", "MGDA", "PCGrad")
    },
    "torchjd UPGrad, rep_grad": lambda: TorchJD(jd.UPGrad(), rep_grad=True),
}


def of_torchjd(name: str) -> Weighting:
    return TorchJD(getattr(jd, name)(**OPTIONS.get(name, {})))


MADE: dict[str, Callable[[], Weighting]] = {
    **{name: getattr(weightings, name) for name in OURS},
    "Fixed": lambda: Fixed(dict.fromkeys(ddp_driver.TASKS, 0.5)),
    **{f"torchjd {name}": partial(of_torchjd, name) for name in THEIRS},
    f"torchjd {KRUM}": lambda: TorchJD(jd.Krum(0)),
    **BY_FEATURES,
}


def run(world: int, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for name, make in MADE.items():
        ddp_driver.WEIGHTINGS[name] = make
        if name.removeprefix("torchjd ") in (*STATEFUL, KRUM):
            noted = ddp_driver.train(world, folder, name, "all tasks")
        else:
            options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
            drawn = "missing labels" if name in BY_FEATURES else "some tasks"
            noted = ddp_driver.train(world, folder, name, drawn, **options)
        found[name] = noted["state"]
    return found


if __name__ == "__main__":
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(run(world, folder), folder / f"rank_{os.environ.get('LOCAL_RANK', '0')}.pt")
    leave_group()
