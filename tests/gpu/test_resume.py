"""A run that was stopped and resumed ends where one that was not ends, on a card too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_meta.cli import main
from lightning_meta.run import read_checkpoint
from tests.gpu.card import accelerator
from tests.meta.oracles import relative_error

CONFIG = Path(__file__).parents[2] / "configs"


def options(name: str, runs: Path, device: torch.device, steps: int) -> list[str]:
    """Training with dropout, whose random state a resume has to restore; SGD, as Adam blows up rounding."""
    chosen = {
        "model.init_args.backbone": "tests.gpu.networks.Dropping",
        "model.init_args.optimizer": "torch.optim.SGD",
        "model.init_args.optimizer.init_args.lr": 0.01,
        "data.init_args.meta_batches_per_epoch": 3,
        "data.init_args.meta_batch_size": 2,
        "data.init_args.val_tasks": 2,
        "data.init_args.test_tasks": 2,
        "data.init_args.evaluation_meta_batch_size": 2,
        "trainer.accelerator": accelerator(device),
        "trainer.deterministic": "warn",
        "trainer.max_steps": steps,
        "trainer.enable_progress_bar": "false",
    }
    return [
        "fit",
        "--config",
        str(CONFIG / f"{name}.yaml"),
        "--runs",
        str(runs),
        *(f"--{k}={v}" for k, v in chosen.items()),
    ]


def weights(run: Path) -> Tensor:
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    return torch.cat([tensor.double().cpu().flatten() for tensor in state.values()])


@pytest.mark.parametrize("name", ["protonet_glyphs", "maml_glyphs"])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(name: str, device: torch.device, tmp_path: Path) -> None:
    assert main(options(name, tmp_path / "whole", device, 8)) == 0
    assert main(options(name, tmp_path / "parts", device, 4)) == 0  # in the middle of an epoch
    between = weights(tmp_path / "parts" / name / "0")
    assert main([*options(name, tmp_path / "parts", device, 8), "--ckpt_path=last"]) == 0
    whole, parts = (weights(tmp_path / part / name / "0") for part in ("whole", "parts"))
    moved = float((whole - between).norm() / whole.norm())
    error = relative_error(parts, whole)
    assert error < 1e-5 < moved / 10, f"{error:.1e}, where the last steps moved the weights by {moved:.1e}"
