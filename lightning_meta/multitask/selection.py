"""The best validation of each task and of the mean over tasks, and the metric that selects it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.run.checkpoint_io import read_checkpoint
from lightning_meta.run.checkpoints import RunCheckpoint

SCORE = "val/score"


def monitored(trainer: Trainer) -> tuple[str, int]:
    """The validation metric that selects the best checkpoint, and its sign: 1 if higher is better, else −1."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunCheckpoint | ModelCheckpoint) and callback.monitor is not None:
            return callback.monitor, 1 if callback.mode == "max" else -1
    return SCORE, 1


def of_tasks(monitor: str, names: list[str], logged: Mapping[str, float]) -> dict[str, float]:
    """The logged values of a metric by name of the task, given the name of its mean over tasks or of one task's value.

    Args:
        monitor: Name of the metric, such as `val/auroc` or `val/auroc/<task>`.
        names: Names of the tasks.
        logged: Metrics of this validation by name.

    Returns:
        The metric of the tasks that have it; empty if it is not a metric of tasks.
    """
    stage, _, rest = monitor.partition("/")
    metric = rest.partition("/")[0]
    return {name: logged[key] for name in names if (key := f"{stage}/{metric}/{name}") in logged}


def with_best_steps(rows: Sequence[Mapping[str, Any]], checkpoint: Path) -> list[dict[str, Any]]:
    """Rows of `per_task.csv` with each task's `best_step` over the whole training.

    A best checkpoint only knows the validations before it. If tasks are selected jointly, a task may be best later,
    which the last checkpoint of the run knows.

    Args:
        rows: One row for each task, in order; rows without a `best_step` are returned as they are.
        checkpoint: The tested checkpoint. Without an intact `last.ckpt` beside it, the rows keep what it knows itself.
    """
    last, found = checkpoint.with_name("last.ckpt"), [dict(row) for row in rows]
    if not found or "best_step" not in found[0] or not last.is_file():
        return found
    try:
        state = read_checkpoint(last)["state_dict"].get("best._extra_state")
    except (UserError, KeyError):
        return found
    if state is None or state.shape[-1] != len(found) + 1:
        return found
    best = BestSoFar(len(found))
    best.set_extra_state(state)
    return [{**row, "best_step": step} for row, step in zip(found, best.steps, strict=True)]


class Improved(NamedTuple):
    """Which scores a validation has improved.

    Attributes:
        tasks: Whether the score of each task is the best so far, `(T,)` bool.
        mean: Whether the mean over tasks is the best so far.
    """

    tasks: Tensor
    mean: bool


class BestSoFar(nn.Module):
    """The score, the loss and the training step of the best validation of each task and of the mean over tasks.

    Ties are broken by the lower loss, then by the earlier step; −∞ is never the best. For a task without any defined
    score, such as the AUROC of constant labels, the lowest loss decides. The state dict stores double precision, for
    any precision of the module.

    Args:
        tasks: Number of tasks T.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self._tasks = tasks
        self.forget()

    def forget(self) -> None:
        """Reset, when earlier scores are no longer comparable."""
        self._best = [(-inf, -inf, -1)] * (self._tasks + 1)  # score, negative loss and step of each task; of the mean

    @property
    def scores(self) -> list[float]:
        """The best score of each task, `(T,)`; −∞ before the first validation."""
        return [score for score, _, _ in self._best[:-1]]

    @property
    def steps(self) -> list[int]:
        """The training step of each task's best validation, `(T,)`; −1 before the first validation."""
        return [step for _, _, step in self._best[:-1]]

    @property
    def mean(self) -> float:
        """The best mean score over tasks; −∞ before the first validation."""
        return self._best[-1][0]

    @property
    def mean_step(self) -> int:
        """The training step of the best mean; −1 before the first validation."""
        return self._best[-1][2]

    def update(self, scores: Tensor, losses: Tensor, step: int) -> Improved:
        """Compare a validation with the best so far.

        Args:
            scores: Scores of the tasks, `(T,)`; higher is better, NaN if undefined.
            losses: Losses of the tasks, `(T,)`.
            step: Number of training steps so far.

        Returns:
            Which scores are now the best.
        """
        improved = []
        with_means = [torch.cat([v.cpu().double(), v.cpu().double().nanmean()[None]]) for v in (scores, losses)]
        for i, (score, loss) in enumerate(zip(*(values.tolist() for values in with_means), strict=True)):
            ranked = (score, -inf if isnan(loss) else -loss)
            improved.append(score > -inf and ranked > self._best[i][:2])  # False if the score is NaN
            # A task that never had a score is ranked by its loss.
            if isnan(score) and isfinite(loss) and i < self._tasks and self._best[i][0] == -inf:
                ranked = (-inf, -loss)
                improved[-1] = ranked > self._best[i][:2]
            if improved[-1]:
                self._best[i] = (*ranked, step)
        return Improved(torch.tensor(improved[:-1], dtype=torch.bool), improved[-1])

    def get_extra_state(self) -> Tensor:
        """The state, `(3, T + 1)`: scores, negative losses and steps."""
        return torch.tensor(self._best, dtype=torch.float64).T.contiguous()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state; earlier versions stored no losses, `(2, T + 1)`."""
        scores, *losses, steps = state.tolist()
        negative = losses[0] if losses else [-inf] * len(scores)
        self._best = [(*ranked, int(step)) for *ranked, step in zip(scores, negative, steps, strict=True)]
