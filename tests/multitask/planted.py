"""Tasks of which it is known whether sharing helps or hurts, for the test of the report."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.functional.random_bits import name_key
from lightning_meta.tasks import Classification, Task

INPUTS, DOMAINS = 20, 2
# The domain, which the input shows; whether labels are flipped; training examples.
TASKS = {"twin_1": (0, False, 20), "twin_2": (0, False, 20), "clean": (1, False, 300), "flipped": (1, True, 100)}


class Planted(TaskSource):
    """Two halves of one task, and a task beside the same one with its labels flipped.

    A network that is not told the task finds twice the examples of the first, and cannot serve both of the others.
    """

    def tasks(self) -> dict[str, Task]:
        return {name: Classification(2) for name in TASKS}

    def sets(self) -> dict[Split, TaskSet]:
        return {split: TaskSet.of_examples({n: self.examples(n, split) for n in TASKS}) for split in SPLITS}

    def descriptors(self) -> Mapping[str, tuple[float, ...]]:
        return dict.fromkeys(TASKS, (1.0,))

    def examples(self, name: str, split: Split) -> Examples:
        domain, flipped, count = TASKS[name]
        teacher = torch.randn(INPUTS, generator=torch.Generator().manual_seed(domain))
        draw = torch.Generator().manual_seed(abs(name_key(name + split)))
        x = torch.randn({"train": count, "val": 200, "test": 2000}[split], INPUTS, generator=draw)
        y = ((x @ teacher > 0) ^ flipped).long()
        where = torch.nn.functional.one_hot(torch.full((len(x),), domain), DOMAINS) * 3.0
        return Examples(torch.cat([x, where], 1), y)
