"""A trial of one batch leaves nothing, whatever logs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_meta.cli import main
from tests.run.test_resume import MODEL


@pytest.mark.parametrize("logger", ["WandbLogger", "TensorBoardLogger"])
def test_a_trial_of_one_batch_claims_no_directory(logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip({"WandbLogger": "wandb", "TensorBoardLogger": "tensorboard"}[logger])
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *MODEL, f"--trainer.logger={logger}", "--trainer.fast_dev_run=true"]) == 0
    assert list(tmp_path.iterdir()) == []
