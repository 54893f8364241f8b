"""The sum of the gradients of the log-losses, scaled to equal norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_meta.checks import below_one
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.ranks import mean_over_ranks
from lightning_meta.weightings.aggregator import Aggregator
from lightning_meta.weightings.of_losses import EPSILON, not_negative


class DBMTL(Aggregator):
    r"""Balances the losses by taking logarithms, and the gradients by scaling them to the same norm.

    With a moving average of the gradient of each task's log-loss on the shared parameters,
    $\hat g_i \leftarrow \beta \hat g_i + (1 - \beta) \nabla \log L_i$, the direction is

    $$\max_j \lVert \hat g_j \rVert \, \sum_i \hat g_i / \lVert \hat g_i \rVert.$$

    The tasks' own parameters get the gradient of $\sum_i \log L_i$. The averages take memory for another T·P numbers.

    Lin, Jiang, Ye, Zhang, Chen, Chen, Liu and Kwok, Dual-Balancing for Multi-Task Learning (2023,
    https://arxiv.org/abs/2308.12029), algorithm 1.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting DBMTL`.

    Logged:
        - `train/loss`: $\sum_i \log L_i$ over the tasks in the batch, so it may fall below 0.

    Deviations:
        - Algorithm 1: the average of a task that is absent from the step is unchanged and left out of the sum.
        - With accumulation, $\nabla \log L_i$ on the shared parameters is that of the mean loss of the step's batches;
          the tasks' own parameters get the mean of the batches' $\nabla \log L_i$.

    Args:
        beta: Decay β of the moving averages, in [0, 1); with 0, only the gradients of the current step are used.

    Raises:
        UserError: β is out of range.
    """

    def __init__(self, beta: float = 0.9) -> None:
        super().__init__()
        below_one(beta=beta)
        self.beta = beta
        self.average: Tensor | None = None  # not a buffer, since its size is unknown before the first step

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The sum of the logarithms of the losses' means over ranks; arguments as in `Weighting`."""
        means = not_negative(mean_over_ranks(losses)) + EPSILON
        linear = (losses - losses.detach()) / means  # value 0, with the gradient of the logarithm
        objective: Tensor = ((linear + means.log()) * present).sum()
        return objective

    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The sum of the averages, each scaled to the largest norm, `(P,)`; arguments as for `Aggregator.direction`."""
        rows = at_least_float32(gradients)
        rows = rows / (losses.to(rows) + EPSILON).unsqueeze(1)
        average = torch.zeros_like(rows) if self.average is None else self.average.to(rows)
        self.average = torch.where(present.unsqueeze(1), self.beta * average + (1 - self.beta) * rows, average)
        lengths = self.average.norm(dim=1) * present
        direction: Tensor = (lengths.max() / (lengths + EPSILON) * present) @ self.average
        return direction

    def get_extra_state(self) -> dict[str, Any]:
        """The moving averages; empty before the first step."""
        return {} if self.average is None else {"average": self.average}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the moving averages."""
        self.average = state["average"].clone() if state else None
