"""A stopped and resumed run in Python, without the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_meta.data import EpisodicDataModule
from lightning_meta.meta import MAML
from lightning_meta.nn import MLP
from lightning_meta.sources import Sinusoid


def fit(precision: Literal["32-true", "64-true"], steps: int, folder: Path, resume: Path | None = None) -> Path:
    """Train to a step, and return the checkpoint written at it."""
    L.seed_everything(3)
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        max_steps=steps,
        precision=precision,
        accelerator="cpu",
        logger=False,
        callbacks=[checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = EpisodicDataModule(Sinusoid(), shots=5, queries=5, meta_batches_per_epoch=2, val_tasks=4, test_tasks=4)
    trainer.fit(MAML(MLP(hidden=(8,))), datamodule=data, ckpt_path=resume)
    return folder / f"step={steps}.ckpt"


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each part keeps its own checkpoints
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_resume_is_exact_in_either_precision(precision: Literal["32-true", "64-true"], tmp_path: Path) -> None:
    whole = fit(precision, 6, tmp_path / "whole")
    first = fit(precision, 3, tmp_path / "first")
    parts = fit(precision, 6, tmp_path / "second", resume=first)
    expected, found = (torch.load(file, weights_only=True)["state_dict"] for file in (whole, parts))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
        assert tensor.dtype == (torch.float64 if precision == "64-true" else torch.float32)
