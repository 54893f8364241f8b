"""What was predicted for every labelled example of every task: each counted once at any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_meta.tasks import Task

_COLUMNS = ("tasks", "ids", "kinds", "losses", "outputs", "targets")


@dataclass(frozen=True)
class TaskRecord:
    """The predictions for one task in a split, in the order of its examples' numbers, which are unique.

    Attributes:
        ids: `(n,)`.
        losses: `(n,)`.
        outputs: `(n, outputs)`.
        targets: `(n, ...)`, as they came.
    """

    ids: Tensor
    losses: Tensor
    outputs: Tensor
    targets: Tensor

    def scores(self, task: Task) -> Tensor:
        """What each example adds to the metric of selection, `(n,)`."""
        return task.example_scores(self.outputs, self.targets)

    def score(self, task: Task) -> float:
        """The metric of selection; NaN where there is no example."""
        return float(self.scores(task).mean()) if len(self.ids) else float("nan")

    def loss(self) -> float:
        """The mean loss; NaN where there is no example."""
        return float(self.losses.double().mean()) if len(self.ids) else float("nan")

    def metrics(self, task: Task) -> dict[str, float]:
        """The task's further metrics by name; NaN where there is no example."""
        if not len(self.ids):
            return dict.fromkeys(task.metrics(), float("nan"))
        outputs, targets = task.readable(self.outputs).cpu(), self.targets.cpu()
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        return {name: float(metric(outputs, targets)) for name, metric in task.metrics().items()}


class TaskRecords(Metric):
    """Gathers predictions over batches and ranks.

    Args:
        tasks: The tasks by name, in order.
    """

    full_state_update = False
    tasks: list[Tensor]
    ids: list[Tensor]
    kinds: list[Tensor]
    losses: list[Tensor]
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.order = {name: i for i, name in enumerate(tasks)}
        self.widths = [task.outputs for task in tasks.values()]
        for name in _COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, name: str, ids: Tensor, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Record n examples of a task; shapes as in `TaskRecord`."""
        width = targets.shape[1] if targets.dim() > 1 else 0
        self.tasks.append(torch.full_like(ids, self.order[name]))
        self.ids.append(ids)
        self.kinds.append(torch.full_like(ids, 2 * width + targets.is_floating_point()))
        self.losses.append(losses.detach())
        self.outputs.append(F.pad(outputs.detach(), (0, max(self.widths) - outputs.shape[1])))
        wide = targets.double() if width else targets.double().unsqueeze(1)
        self.targets.append(F.pad(wide, (0, max(1, *self.widths) - wide.shape[1])))

    def compute(self) -> RecordTable:
        """The records over all ranks; an example that was seen twice stands once."""
        if not len(self.tasks):  # one tensor, where ranks were gathered
            return RecordTable({})
        tasks, ids, kinds, losses, outputs, targets = (dim_zero_cat(getattr(self, name)) for name in _COLUMNS)
        found = {}
        for name, number in self.order.items():
            of = (tasks == number).nonzero()[:, 0]
            of = of[ids[of].argsort(stable=True)]
            if len(of) > 1:
                of = of[torch.cat([of.new_ones(1, dtype=torch.bool), ids[of].diff() != 0])]
            width, real = divmod(int(kinds[of[0]]), 2) if len(of) else (0, 1)
            wanted = targets[of, :width] if width else targets[of, 0]
            found[name] = TaskRecord(
                ids[of], losses[of], outputs[of, : self.widths[number]], wanted if real else wanted.long()
            )
        return RecordTable(found)


class RecordTable:
    """The records of a split by name of the task.

    It is neither a mapping nor a dataclass, since torchmetrics would take these apart.
    """

    def __init__(self, of: dict[str, TaskRecord]) -> None:
        self.of = of

    def predictions(self, tasks: Mapping[str, Task]) -> dict[str, np.ndarray]:
        """All records as one table, as written to `predictions.npz`; narrower rows end in NaN."""
        records = [self.of[name] for name in tasks]
        outputs = max(record.outputs.shape[1] for record in records)
        wanted = [r.targets.double() if r.targets.dim() > 1 else r.targets.double().unsqueeze(1) for r in records]
        targets = max(rows.shape[1] for rows in wanted)
        scores = [
            r.scores(t) if len(r.ids) else r.losses.double() for r, t in zip(records, tasks.values(), strict=True)
        ]
        columns = {
            "task": torch.cat([torch.full_like(r.ids, i) for i, r in enumerate(records)]),
            "id": torch.cat([r.ids for r in records]),
            "score": torch.cat(scores),
            "output": torch.cat([_widened(r.outputs.float(), outputs) for r in records]),
            "target": torch.cat([_widened(w, targets) for w in wanted]),
        }
        return {"names": np.array(list(tasks)), **{name: column.cpu().numpy() for name, column in columns.items()}}


def _widened(rows: Tensor, width: int) -> Tensor:
    return F.pad(rows, (0, width - rows.shape[1]), value=torch.nan)
