"""A small module and data module with everything that an exact resume has to carry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_meta.describing import Described, describe
from lightning_meta.errors import NonFiniteLossError, UserError


class ToyLoader:
    """Batch b is a function of b; the position is counted over the whole run."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.next = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        for b in range(self.next, (self.next // self.length + 1) * self.length):
            self.next += 1
            yield batch(b)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def batch(number: int) -> Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(number))


class ToyData(LightningDataModule):
    """Random numbers.

    Args:
        length: Batches in an epoch.
        broken: Whether `setup` finds a mistake of the user's.
    """

    def __init__(self, length: int = 10, broken: bool = False) -> None:
        super().__init__()
        self.length, self.broken = length, broken

    def setup(self, stage: str) -> None:
        if self.broken:
            raise UserError("ways: 50 classes are asked for, the split test has 20")

    def train_dataloader(self) -> ToyLoader:
        return ToyLoader(self.length)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([batch(10_000 + i) for i in range(2)], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([batch(20_000 + i) for i in range(2)], batch_size=None)  # type: ignore[arg-type]


class ToyModule(Described, LightningModule):
    """Learns to shrink its output; dropout draws from the global generator, batch norm has buffers.

    Args:
        backbone: The network.
        optimizer: The optimizer.
        nan_at: The step whose loss is NaN.
    """

    def __init__(self, backbone: nn.Module, optimizer: OptimizerCallable = torch.optim.Adam, nan_at: int = -1) -> None:
        super().__init__()
        self.backbone, self.norm, self.optimizer, self.nan_at = backbone, nn.BatchNorm1d(5), optimizer, nan_at

    def score(self, x: Tensor) -> Tensor:
        return F.dropout(self.backbone(self.norm(x)), 0.5, self.training).square().mean()

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        loss = self.score(x)
        if self.global_step == self.nan_at:
            raise NonFiniteLossError(f"the loss became NaN at step {self.global_step}")
        self.log("train/loss", loss, batch_size=1)
        return loss

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        self.log("val/accuracy", -self.score(x), batch_size=1)

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        self.log("test/accuracy", self.score(x), batch_size=1)
        self.log("test/tasks", 2.0, batch_size=1)

    def on_test_epoch_end(self) -> None:
        self.test_report = {
            "predictions": {"task": np.arange(2), "output": np.zeros((2, 4, 5)), "target": np.zeros((2, 4))},
            "per_task": [{"task": i, "step_0": 0.0, "step_1": 0.0, "step_2": 0.0} for i in range(2)],
        }

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lightning_meta"] = describe(self)
