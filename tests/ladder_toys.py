"""A multi-task module and its data, small enough to train in a blink, that leave what a multi-task run leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_meta.describing import Described, describe
from tests.run.toys import ToyLoader

TASKS = ("near", "far")


class ToyTasks(Described, LightningModule):
    """Learns to shrink its output; its two tasks ask whether an output is small.

    Args:
        width: Width of the network.
        lr: Learning rate.
        nan_at: The step at which training fails.
    """

    def __init__(self, width: int = 4, lr: float = 0.1, fail_at: int = -1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 5))
        self.lr, self.fail_at = lr, fail_at

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise KeyboardInterrupt
        loss = self.net(x).square().mean()
        self.log("train/loss", loss, batch_size=1)
        return loss

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        self.log("val/score", -self.net(x).square().mean(), batch_size=1)

    def on_test_start(self) -> None:
        self.outputs: list[Tensor] = []

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        self.outputs.append(self.net(x).square().mean(-1))
        self.log("test/score", self.outputs[-1].mean(), batch_size=1)

    def on_test_epoch_end(self) -> None:
        output = torch.cat(self.outputs).double().numpy()
        n = len(output)
        score = np.concatenate([output < 0.1, output < 0.3]).astype(float)
        self.test_report = {
            "predictions": {
                "names": np.array(TASKS),
                "task": np.repeat([0, 1], n),
                "id": np.tile(np.arange(n), 2),
                "score": score,
                "output": np.tile(output, 2)[:, None],
                "target": np.zeros((2 * n, 1)),
            },
            "per_task": [
                {
                    "task": name,
                    "metric": "accuracy",
                    "better": "higher",
                    "train_examples": 100,
                    "test_examples": n,
                    "best_step": 1,
                    "train": 1.0,
                    "val": 0.5,
                    "test": score[i * n : (i + 1) * n].mean(),
                    "train_loss": float(output.mean()),
                    "val_loss": 1.0,
                    "test_loss": 1.0,
                    "joint": "",
                    "gradient_share": "",
                    "constant": "",
                }
                for i, name in enumerate(TASKS)
            ],
        }

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lightning_meta"] = describe(self)


class WideToyTasks(ToyTasks):
    """`ToyTasks` under another name."""


__all__ = ["ToyLoader", "ToyTasks", "WideToyTasks"]
