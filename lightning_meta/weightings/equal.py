"""The sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting


class Equal(Weighting):
    r"""The sum of the losses, $\min_\theta \sum_i L_i$: every weight is 1.

    It is a strong baseline if its learning rate is tuned as carefully as those of other methods (Kurin et al., NeurIPS
    2022; Xin et al., NeurIPS 2022).

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml`; it is the default.

    Logged:
        No weights; `train/loss` is the sum over the tasks in the batch.
    """

    weight: Tensor

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make a weight of 1 for each task."""
        self.register_buffer("weight", torch.ones(len(tasks)), persistent=False)

    def weights(self) -> Tensor:
        """Ones, `(T,)`."""
        return self.weight

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The sum of the losses; arguments as in `Weighting`."""
        return losses.sum() if type(self) is Equal else super().forward(losses, present)
