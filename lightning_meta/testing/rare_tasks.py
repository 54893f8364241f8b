"""Many tasks with rare and missing labels and known probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.checks import below_one, positive, whole
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import name_key
from lightning_meta.tasks import Binary, Task


class RareTasks(TaskSource):
    r"""Binary tasks whose probabilities are known: $p_t(x) = \sigma(s\, v_t^\top h(x) + b_t)$, $h_k(x) = |w_k^\top x|$.

    The inputs x are standard normal. The features h are even functions of x, so a linear model has an AUROC of ½. Where
    the tasks are related, all of them use the same directions $w_k$, so that a method that shares a network finds them
    from the labels of all tasks; else each task has its own. The intercept $b_t$ sets the share of positives. ::

        data = lm.MultiTaskDataModule(lm.testing.RareTasks(tasks=100), batch_size=100)

    Args:
        tasks: Number of tasks T, >= 1.
        rows: Number of training rows, >= 1; val has half as many, test four times as many.
        inputs: Number of inputs D, >= 1.
        features: Number of features K on which a task depends, >= 1.
        positives: Share of positive labels, in (0, 1).
        missing: Probability that a row has no label for a task, in [0, 1).
        strength: Scale s > 0 of the logits, whose standard deviation is about 0.6 s; tasks with larger values can be
            predicted better.
        related: Whether the tasks share the directions w.
        seed: Seed of the tasks and the rows, >= 0.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(
        self,
        tasks: int = 100,
        rows: int = 500,
        inputs: int = 10,
        features: int = 3,
        positives: float = 0.06,
        missing: float = 0.3,
        strength: float = 4.0,
        related: bool = True,
        seed: int = 0,
    ) -> None:
        whole(1, tasks=tasks, rows=rows, inputs=inputs, features=features)
        whole(0, seed=seed)
        positive(positives=positives, strength=strength)
        below_one(missing=missing)
        if positives >= 1:
            raise UserError(f"positives: a share of labels in (0, 1) is needed, got {positives}")
        self.count, self.rows, self.inputs, self.features = tasks, rows, inputs, features
        self.positives, self.missing, self.strength, self.related = positives, missing, strength, related
        self.seed = seed
        draw = self._generator("tasks")
        w = torch.randn(1 if related else tasks, features, inputs, generator=draw)
        self._w = (w / w.norm(dim=-1, keepdim=True)).expand(tasks, -1, -1)
        v = torch.randn(tasks, features, generator=draw)
        self._v = strength * v / v.norm(dim=-1, keepdim=True)
        self._b = self._intercepts(self._logits(torch.randn(20_000, inputs, generator=draw)))

    def tasks(self) -> dict[str, Task]:
        """T binary tasks."""
        return {f"task_{i:03}": Binary() for i in range(self.count)}

    def sets(self) -> dict[Split, TaskSet]:
        """Inputs `(n, D)` with labels of a part of the tasks each."""
        sets: dict[Split, TaskSet] = {}
        for split in SPLITS:
            x, labels, present = self._drawn(split)
            names = list(self.tasks())
            sets[split] = TaskSet.of_columns(
                x, dict(zip(names, labels.T, strict=True)), dict(zip(names, present.T, strict=True))
            )
        return sets

    def probabilities(self, x: Tensor) -> Mapping[str, Tensor]:
        """The true probability of yes of each task: no prediction has a better expected AUROC or log loss.

        Args:
            x: Inputs `(M, D)`.

        Returns:
            Probabilities by name of the task, each `(M,)`.
        """
        of_tasks = (self._logits(x) + self._b).sigmoid()
        return dict(zip(self.tasks(), of_tasks.T, strict=True))

    def _drawn(self, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, labels, and the mask of the labels that are present."""
        count = {"train": self.rows, "val": max(1, self.rows // 2), "test": 4 * self.rows}[split]
        draw = self._generator(split)
        x = torch.randn(count, self.inputs, generator=draw)
        chance, there = torch.rand(2, count, self.count, generator=draw)
        return x, (chance < (self._logits(x) + self._b).sigmoid()).long(), there >= self.missing

    def _logits(self, x: Tensor) -> Tensor:
        """Logits without the intercepts, `(M, T)`."""
        of_features = [(x @ self._w[:, k].T).abs() * self._v[:, k] for k in range(self.features)]
        return torch.stack(of_features).sum(0)

    def _intercepts(self, logits: Tensor) -> Tensor:
        """b of each task by bisection: the mean probability over many rows is the share of positives."""
        low, high = logits.new_full((self.count,), -100.0), logits.new_full((self.count,), 100.0)
        for _ in range(60):
            middle = (low + high) / 2
            more = (logits + middle).sigmoid().mean(0) > self.positives
            low, high = torch.where(more, low, middle), torch.where(more, middle, high)
        return (low + high) / 2

    def _generator(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed + abs(name_key(what))) % 2**62)
