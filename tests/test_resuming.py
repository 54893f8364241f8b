"""Resuming in Python, without the command line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_meta.data import EpisodicDataModule
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML
from lightning_meta.nn import MLP
from lightning_meta.resuming import check_class
from lightning_meta.sources import Sinusoid
from tests.meta.oracles import trainer as plain_trainer


def train(optimizer: Callable[[Any], Any], folder: Path, steps: int, resume: Path | None = None) -> L.Trainer:
    trainer = plain_trainer(max_steps=steps, limit_val_batches=0)
    data = EpisodicDataModule(Sinusoid(), shots=2, queries=2, meta_batch_size=1, val_tasks=1, test_tasks=1)
    trainer.fit(MAML(MLP(hidden=(2,)), optimizer=optimizer, inner_steps=1), datamodule=data, ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    return trainer


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize("new", [torch.optim.Adam, adam])
@pytest.mark.parametrize("old", [torch.optim.SGD, sgd])
def test_another_optimizer_is_one_line(old: Any, new: Any, tmp_path: Path) -> None:
    train(old, tmp_path, 1)
    with pytest.raises(
        UserError, match=r"optimizer: the checkpoint was written with .*; resume with the same, or start a new run"
    ):
        train(new, tmp_path, 2, tmp_path / "last.ckpt")


def test_another_class_is_one_line(tmp_path: Path) -> None:
    train(torch.optim.Adam, tmp_path, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["lightning_meta"]["class_path"] = "lightning_meta.meta.baseline.Baseline"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt is a checkpoint of .*Baseline, not of lightning_meta\.MAML; "):
        train(torch.optim.Adam, tmp_path, 2, tmp_path / "other.ckpt")


@pytest.mark.parametrize("path", ["lightning_meta.meta.maml.MAML", "lightning_meta.meta.MAML"])
def test_another_way_to_the_class_is_none_to_another(path: str, tmp_path: Path) -> None:
    train(torch.optim.Adam, tmp_path, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["lightning_meta"]["class_path"] = path  # as earlier versions wrote it
    checkpoint["lightning_meta"]["init_args"]["optimizer"]["class_path"] = "torch.optim.Adam"
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    assert train(torch.optim.Adam, tmp_path, 2, tmp_path / "earlier.ckpt").global_step == 2


class Mine(MAML):
    """A class of the user's."""


def test_a_class_of_the_user_s_may_lie_in_a_module_of_another_name() -> None:
    mine = Mine(MLP(hidden=(2,)))
    check_class(mine, {"lightning_meta": {"class_path": "__main__.Mine"}}, "a.ckpt")
    for other in ("__main__.Other", "lightning_meta.MAML"):
        with pytest.raises(UserError, match=rf"a\.ckpt is a checkpoint of {other}, not of tests\.test_resuming\.Mine"):
            check_class(mine, {"lightning_meta": {"class_path": other}}, "a.ckpt")


def test_a_rate_that_lightning_does_not_use_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from functools import partial

    train(partial(torch.optim.Adam, lr=0.1), tmp_path, 1)
    with caplog.at_level(logging.WARNING, logger="lightning_meta"):
        train(partial(torch.optim.Adam, lr=0.1), tmp_path, 2, tmp_path / "last.ckpt")
        assert "Lightning restores the options of the checkpoint" not in caplog.text
        trainer = train(partial(torch.optim.Adam, lr=0.2), tmp_path, 3, tmp_path / "last.ckpt")
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1
    assert "optimizer: Lightning restores the options of the checkpoint" in caplog.text


def test_a_checkpoint_that_does_not_name_defaults_is_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints of earlier versions name only the options that were given."""
    train(torch.optim.Adam, tmp_path, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name in ("optimizer", "lr_scheduler"):
        del checkpoint["lightning_meta"]["init_args"][name]
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    with caplog.at_level(logging.WARNING, logger="lightning_meta"):
        train(torch.optim.Adam, tmp_path, 2, tmp_path / "earlier.ckpt")
    assert "restores the options" not in caplog.text
