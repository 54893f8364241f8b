"""What was predicted for every labelled example of every task: each counted once at any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isnan, nan

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task

_DTYPES = (torch.float32, torch.float64, torch.int64)  # of targets, as they are recorded
_COLUMNS = ("task_numbers", "ids", "kinds", "losses", "outputs", "targets")


@dataclass(frozen=True)
class TaskRecord:
    """The predictions for one task in a split, on the CPU, in the order of its examples' numbers, which are unique.

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

    def score(self, task: Task) -> float:
        """The metric of selection; NaN where there is no example, or where it is not defined."""
        return task.evaluate(self.outputs.double(), self.targets)

    def ranked_score(self, task: Task) -> float:
        """As `score`, but infinitely bad where predictions that are not finite made it NaN.

        A mean over tasks leaves out tasks that have no score, such as R² of equal targets. It must not rise because a
        task's predictions blew up.
        """
        score = self.score(task)
        failed = score != score and not bool(torch.isfinite(self.outputs).all())
        return float("-inf" if task.selection_mode == "max" else "inf") if failed else score

    def constant_score(self, task: Task) -> float:
        """The metric of selection of the best prediction that ignores the input; NaN where it is not known."""
        outputs = task.constant()
        return nan if outputs is None else task.evaluate(outputs.expand(len(self.ids), -1), self.targets)

    def example_scores(self, task: Task) -> Tensor:
        """What each example adds to the metric of selection, `(n,)`; NaN where it is not defined."""
        outputs = self.outputs.double()
        scores = task.example_scores(outputs, self.targets) if len(self.ids) else self.losses.double()
        return torch.full_like(scores, torch.nan) if isnan(self.score(task)) else scores

    def loss(self) -> float:
        """The mean loss; NaN where there is no example."""
        return float(self.losses.double().mean()) if len(self.ids) else float("nan")

    def ranked_loss(self) -> float:
        """As `loss`, but infinite where predictions that are not finite made it NaN: see `ranked_score`."""
        loss = self.loss()
        return inf if len(self.ids) and isnan(loss) else loss

    def metrics(self, task: Task) -> dict[str, float]:
        """The task's further metrics by name; NaN where there is no example, or where one is not defined."""
        named = [name for name in task.beside if name != task.selection]
        found = {name: task.evaluate(self.outputs.double(), self.targets, name) for name in named}
        if not len(self.ids):
            return {**found, **dict.fromkeys(task.metrics(), nan)}
        outputs, targets = task.readable(self.outputs.double()), self.targets
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        return {**found, **{name: float(metric(outputs, targets)) for name, metric in task.metrics().items()}}


class TaskRecords(Metric):
    """Gathers predictions over batches and ranks.

    Args:
        tasks: The tasks by name, in order.
    """

    full_state_update = False
    task_numbers: list[Tensor]
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
        numbers, dtype = _as_integers(targets if width else targets.unsqueeze(1))
        self.task_numbers.append(torch.full_like(ids, self.order[name]))
        self.ids.append(ids.clone())
        self.kinds.append(torch.full_like(ids, len(_DTYPES) * width + _DTYPES.index(dtype)))
        # Copies, since a view would keep all that it is a view of; rows of all tasks are equally wide, to be gathered.
        self.losses.append(losses.detach().clone())
        self.outputs.append(F.pad(outputs.detach(), (0, max(self.widths) - outputs.shape[1])))
        self.targets.append(F.pad(numbers, (0, max(1, *self.widths) - numbers.shape[1])))

    def compute(self) -> RecordTable:
        """The records over all ranks; an example that was seen twice stands once."""
        if not len(self.task_numbers):  # one tensor, where ranks were gathered
            return RecordTable({})
        columns = (dim_zero_cat(getattr(self, name)).cpu() for name in _COLUMNS)
        task_numbers, ids, kinds, losses, outputs, targets = columns
        losses, outputs = at_least_float32(losses), at_least_float32(outputs)
        found = {}
        for name, number in self.order.items():
            of = (task_numbers == number).nonzero()[:, 0]
            of = of[ids[of].argsort(stable=True)]
            if len(of) > 1:
                of = of[torch.cat([of.new_ones(1, dtype=torch.bool), ids[of].diff() != 0])]
            width, dtype = divmod(int(kinds[of[0]]), len(_DTYPES)) if len(of) else (0, 0)
            wanted = _from_integers(targets[of, :width] if width else targets[of, 0], _DTYPES[dtype])
            found[name] = TaskRecord(ids[of], losses[of], outputs[of, : self.widths[number]], wanted)
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
        scores = [record.example_scores(task) for record, task in zip(records, tasks.values(), strict=True)]
        columns = {
            "task": torch.cat([torch.full_like(r.ids, i) for i, r in enumerate(records)]),
            "id": torch.cat([r.ids for r in records]),
            "score": torch.cat(scores),
            "output": torch.cat([_widened(r.outputs, outputs) for r in records]),
            "target": torch.cat([_widened(w, targets) for w in wanted]),
        }
        return {"names": np.array(list(tasks)), **{name: column.cpu().numpy() for name, column in columns.items()}}


def _as_integers(targets: Tensor) -> tuple[Tensor, torch.dtype]:
    """Targets as int64, and what they were: bits of real numbers, since not every device has float64.

    Classes and real numbers of all tasks lie in one tensor, which ranks exchange, and keep all their digits.
    """
    if not targets.is_floating_point():
        return targets.long(), torch.int64
    targets = at_least_float32(targets)
    bits = targets.view(torch.int64 if targets.dtype == torch.float64 else torch.int32)
    return bits.long(), targets.dtype


def _from_integers(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int64:
        return numbers
    return (numbers.int() if dtype == torch.float32 else numbers).view(dtype)


def _widened(rows: Tensor, width: int) -> Tensor:
    return F.pad(rows, (0, width - rows.shape[1]), value=torch.nan)
