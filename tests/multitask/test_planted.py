"""From training to the report: a planted conflict is reported as harm, a planted twin as help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_meta.cli import main

LADDER = {
    "seeds": [1, 2, 3],
    "baseline": "independent",
    "shared": {
        "data": {
            "class_path": "lightning_meta.MultiTaskDataModule",
            "init_args": {
                "source": {"class_path": "tests.multitask.planted.Planted"},
                "batch_size": 30,
                "batches_per_epoch": 20,
            },
        },
        "checkpoint": {"monitor": "val/score"},
        "trainer": {"max_epochs": 12, "enable_progress_bar": False, "accelerator": "cpu"},
    },
    "model": {
        "init_args": {
            "backbone": {
                "class_path": "lightning_meta.nn.MLP",
                "init_args": {"in_features": 22, "hidden": [32, 32]},
            },
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.005}},
        }
    },
    "rungs": {
        "independent": {"class_path": "lightning_meta.Independent"},
        # Every task has the same descriptor: one network that is not told which task it is.
        "pooled": {"class_path": "lightning_meta.Conditioned", "init_args": {"descriptor": "given"}},
        "multi_head": {"class_path": "lightning_meta.MultiHead"},
    },
}


@pytest.mark.slow
def test_a_planted_conflict_hurts_and_a_planted_twin_helps(tmp_path: Path) -> None:
    config = tmp_path / "planted.yaml"
    config.write_text(yaml.safe_dump(LADDER))
    assert main(["ladder", "--config", str(config), "--runs", str(tmp_path / "runs")]) == 0
    report = json.loads((tmp_path / "runs" / "planted" / "report" / "transfer.json").read_text())
    methods = {method["method"]: method for method in report["methods"]}
    pooled = {task["task"]: task for task in methods["pooled"]["tasks"]}
    assert pooled["flipped"]["verdict"] == "hurt"
    assert pooled["flipped"]["cause"] == "interference"
    assert pooled["flipped"]["delta"] < -0.3
    assert pooled["flipped"]["high"] < 0
    for twin in ("twin_1", "twin_2"):
        assert pooled[twin]["verdict"] == "helped"
        assert pooled[twin]["low"] > 0
    # A head of its own can turn the flipped labels round.
    own_head = {task["task"]: task for task in methods["multi_head"]["tasks"]}
    assert own_head["flipped"]["verdict"] != "hurt"
