"""A module whose validations have the scores that a test asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.run.toys import ToyModule


class Scripted(ToyModule):
    """Validation v, which follows training step 2 (v + 1), logs the v-th of the scores.

    Args:
        backbone: The network.
        metric: Name under which the scores are logged.
        scores: Scores of the validations, separated by commas.
        losses: Values of `val/loss`, separated by commas; by default it is not logged.
    """

    def __init__(
        self, backbone: nn.Module, metric: str = "val/accuracy", scores: str = "0", losses: str | None = None
    ) -> None:
        super().__init__(backbone)
        self.metric, self.scores = metric, scores
        self.losses = losses

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        for name, values in ((self.metric, self.scores), ("val/loss", self.losses)):
            if values is not None:
                value = float(values.split(",")[self.global_step // 2 - 1])
                self.log(name, torch.tensor(value, dtype=torch.float64), batch_size=1)


OPTIONS = [
    "--model=tests.run.scripted.Scripted",
    "--model.backbone=torch.nn.Linear",
    "--model.backbone.in_features=5",
    "--model.backbone.out_features=5",
    "--data=tests.run.toys.ToyData",
    "--data.length=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--name=toy",
]
