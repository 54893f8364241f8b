"""Which validation was the best, for each task and for their mean, and by which metric."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite, isnan
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_meta.run.checkpoints import RunCheckpoint

SCORE = "val/score"


def monitored(trainer: Trainer) -> tuple[str, int]:
    """The validation metric that chooses the best checkpoint, and its sign: 1 where a large value is good, else −1."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunCheckpoint | ModelCheckpoint) and callback.monitor is not None:
            return callback.monitor, 1 if callback.mode == "max" else -1
    return SCORE, 1


def of_tasks(monitor: str, names: list[str], logged: Mapping[str, float]) -> dict[str, float]:
    """What a monitored mean is the mean of, by name of the task; of a single task's metric, the same of every task.

    Args:
        monitor: Such as `val/auroc` or `val/auroc/<task>`.
        names: The tasks.
        logged: In this validation, by name.

    Returns:
        The tasks that have the metric; none where it is not one of tasks.
    """
    stage, _, rest = monitor.partition("/")
    metric = rest.partition("/")[0]
    return {name: logged[of] for name in names if (of := f"{stage}/{metric}/{name}") in logged}


class Improved(NamedTuple):
    """What a validation is the best of so far.

    Attributes:
        tasks: `(T,)` bool.
        mean: Of the mean over tasks.
    """

    tasks: Tensor
    mean: bool


class BestSoFar(nn.Module):
    """The best validation of each task and of their mean: the score, the loss and the training step of each.

    Of equal scores the one with the lower loss is the better, else the earlier; −∞ is never the best. A task that never
    had a score, such as the AUROC of labels that are all the same, has its best where its loss was the lowest. It is
    part of the state dict in double precision, whatever the precision of the module.

    Args:
        tasks: T.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self._tasks = tasks
        self.forget()

    def forget(self) -> None:
        """Begin anew, where scores are no longer comparable."""
        self._best = [(-inf, -inf, -1)] * (self._tasks + 1)  # score, negative loss and step of each task; of the mean

    @property
    def scores(self) -> list[float]:
        """`(T,)`, −∞ before the first validation."""
        return [score for score, _, _ in self._best[:-1]]

    @property
    def steps(self) -> list[int]:
        """`(T,)`, −1 before the first validation."""
        return [step for _, _, step in self._best[:-1]]

    @property
    def mean(self) -> float:
        """The best mean."""
        return self._best[-1][0]

    @property
    def mean_step(self) -> int:
        """Its training step."""
        return self._best[-1][2]

    def update(self, scores: Tensor, losses: Tensor, step: int) -> Improved:
        """Take a validation into account.

        Args:
            scores: `(T,)`, a large one is good.
            losses: `(T,)`.
            step: Training steps so far.
        """
        improved = []
        with_means = [torch.cat([v.cpu().double(), v.cpu().double().nanmean()[None]]) for v in (scores, losses)]
        for i, (score, loss) in enumerate(zip(*(values.tolist() for values in with_means), strict=True)):
            ranked = (score, -inf if isnan(loss) else -loss)
            improved.append(score > -inf and ranked > self._best[i][:2])  # false where the score is NaN
            if isnan(score) and isfinite(loss) and i < self._tasks and self._best[i][0] == -inf:
                ranked = (-inf, -loss)
                improved[-1] = ranked > self._best[i][:2]
            if improved[-1]:
                self._best[i] = (*ranked, step)
        return Improved(torch.tensor(improved[:-1], dtype=torch.bool), improved[-1])

    def get_extra_state(self) -> Tensor:
        """All of it, `(3, T + 1)`."""
        return torch.tensor(self._best, dtype=torch.float64).T.contiguous()

    def set_extra_state(self, state: Tensor) -> None:
        """Take it up again; earlier versions kept no losses, `(2, T + 1)`."""
        scores, *losses, steps = state.tolist()
        negative = losses[0] if losses else [-inf] * len(scores)
        self._best = [(*ranked, int(step)) for *ranked, step in zip(scores, negative, steps, strict=True)]
