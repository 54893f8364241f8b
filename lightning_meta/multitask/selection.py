"""Which validation was the best, for each task and for their mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Improved(NamedTuple):
    """What a validation is the best of so far.

    Attributes:
        tasks: `(T,)` bool.
        mean: Of the mean over tasks.
    """

    tasks: Tensor
    mean: bool


class BestSoFar(nn.Module):
    """The best validation score of each task and of their mean, and the training step of each.

    It is part of the state dict in double precision, whatever the precision of the module.

    Args:
        tasks: T.

    Attributes:
        scores: `(T,)`, −inf before the first validation.
        steps: `(T,)`, −1 before the first validation.
        mean: The best mean.
        mean_step: Its training step.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.scores = [float("-inf")] * tasks
        self.steps = [-1] * tasks
        self.mean, self.mean_step = float("-inf"), -1

    def update(self, scores: Tensor, step: int) -> Improved:
        """Take the scores of a validation into account; NaN is never the best.

        Args:
            scores: `(T,)`.
            step: Training steps so far.
        """
        improved = torch.zeros(len(scores), dtype=torch.bool)
        for i, score in enumerate(scores.tolist()):
            if score > self.scores[i]:
                improved[i] = True
                self.scores[i], self.steps[i] = score, step
        mean = float(scores.cpu().double().nanmean())
        better = mean > self.mean
        if better:
            self.mean, self.mean_step = mean, step
        return Improved(improved, better)

    def get_extra_state(self) -> Tensor:
        """All of it, `(2, T + 1)`."""
        return torch.tensor([[*self.scores, self.mean], [*self.steps, self.mean_step]], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it up again."""
        scores, steps = state.tolist()
        *self.scores, self.mean = scores
        *self.steps, self.mean_step = map(int, steps)
