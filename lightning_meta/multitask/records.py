"""What was predicted for every labelled example of every task: each counted once at any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isnan, nan

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task
from lightning_meta.tasks.evaluating import Evaluation, evaluated, means_of
from lightning_meta.tasks.together import Losses

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
        return self.as_ranked(self.score(task), task)

    def as_ranked(self, score: float, task: Task) -> float:
        """The ranked score, given the score."""
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
        return self.as_ranked_loss(self.loss())

    def as_ranked_loss(self, loss: float) -> float:
        """The ranked loss, given the loss."""
        return inf if len(self.ids) and isnan(loss) else loss

    def further(self, task: Task) -> dict[str, float]:
        """The metrics that a task of a user's own adds, by name; NaN where there is no example."""
        metrics = task.metrics()
        if not metrics or not len(self.ids):
            return dict.fromkeys(metrics, nan)
        outputs, targets = task.readable(self.outputs.double()), self.targets
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        return {name: float(metric(outputs, targets)) for name, metric in metrics.items()}


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

    def update(
        self,
        losses: Sequence[Losses],
        ids: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
    ) -> None:
        """Record the examples of a batch, whose losses are grouped by kind of task; shapes as in `TaskRecord`."""
        columns = (ids, outputs, targets)
        for group in losses:
            of_ids, of_outputs, of_targets = (torch.cat([of[name] for name in group.names]) for of in columns)
            width = of_targets.shape[1] if of_targets.dim() > 1 else 0
            numbers, dtype = _as_integers(of_targets if width else of_targets.unsqueeze(1))
            counts = torch.tensor(group.counts, device=of_ids.device)
            tasks = torch.tensor([self.order[name] for name in group.names], device=of_ids.device)
            of_examples = tasks.repeat_interleave(counts, output_size=len(of_ids))  # else a GPU is asked for the sum
            self.task_numbers.append(of_examples)
            self.ids.append(of_ids)
            self.kinds.append(torch.full_like(of_ids, len(_DTYPES) * width + _DTYPES.index(dtype)))
            # Copies, since a view would keep all that it is a view of; rows of all tasks are equally wide, to be
            # gathered.
            self.losses.append(group.values.detach().clone())
            self.outputs.append(F.pad(of_outputs.detach(), (0, max(self.widths) - of_outputs.shape[1])))
            self.targets.append(F.pad(numbers, (0, max(1, *self.widths) - numbers.shape[1])))

    def compute(self) -> RecordTable:
        """The records over all ranks; an example that was seen twice stands once."""
        if not len(self.task_numbers):  # one tensor, where ranks were gathered
            return RecordTable({})
        task_numbers, ids, *others = (dim_zero_cat(getattr(self, name)).cpu() for name in _COLUMNS)
        if not _ascends(task_numbers, ids):
            order = torch.from_numpy(np.lexsort((ids.numpy(), task_numbers.numpy())))  # stable: the first stays
            pairs = torch.stack([task_numbers, ids])[:, order]
            first = torch.ones(len(order), dtype=torch.bool)
            first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(0)
            order = order[first]
            task_numbers, ids, *others = (of[order] for of in (task_numbers, ids, *others))
        kinds, losses, outputs, targets = others
        counts = torch.bincount(task_numbers, minlength=len(self.order)).tolist()
        columns = [of.split(counts) for of in (ids, at_least_float32(losses), at_least_float32(outputs))]
        begins = [end - count for end, count in zip(accumulate(counts), counts, strict=True)]
        of_tasks = [int(kinds[begin]) if count else 0 for begin, count in zip(begins, counts, strict=True)]
        by_dtype = {n: _from_integers(targets, _DTYPES[n]).split(counts) for n in {k % len(_DTYPES) for k in of_tasks}}
        found = {}
        for name, kind, own, *of in zip(self.order, of_tasks, self.widths, *columns, strict=True):
            width, dtype = divmod(kind, len(_DTYPES))
            wanted = by_dtype[dtype][self.order[name]]
            found[name] = TaskRecord(of[0], of[1], of[2][:, :own], wanted[:, :width] if width else wanted[:, 0])
        return RecordTable(found)


class RecordTable:
    """The records of a split by name of the task.

    It is neither a mapping nor a dataclass, since torchmetrics would take these apart.
    """

    def __init__(self, of: dict[str, TaskRecord]) -> None:
        self.of = of
        self._ranked: dict[str, float] = {}

    def ranked_scores(self, tasks: Mapping[str, Task]) -> dict[str, float]:
        """`TaskRecord.ranked_score` by name."""
        if not self._ranked:
            scores = self._evaluated([(name, task, task.selection) for name, task in tasks.items()])
            for (name, task), score in zip(tasks.items(), scores, strict=True):
                self._ranked[name] = self.of[name].as_ranked(score, task)
        return dict(self._ranked)

    def metrics(self, tasks: Mapping[str, Task]) -> dict[str, dict[str, float]]:
        """`TaskRecord.metrics` by name."""
        wanted = [(n, task, m) for n, task in tasks.items() for m in task.beside if m != task.selection]
        found: dict[str, dict[str, float]] = {name: {} for name in tasks}
        for (name, _, metric), value in zip(wanted, self._evaluated(wanted), strict=True):
            found[name][metric] = value
        return {name: {**found[name], **self.of[name].further(task)} for name, task in tasks.items()}

    def ranked_losses(self) -> dict[str, float]:
        """`TaskRecord.ranked_loss` by name."""
        means = zip(self.of.items(), means_of([record.losses for record in self.of.values()]), strict=True)
        return {name: record.as_ranked_loss(mean) for (name, record), mean in means}

    def _evaluated(self, wanted: Sequence[tuple[str, Task, str]]) -> list[float]:
        """Metrics of tasks: by name of the task, the task and the metric."""
        records = [self.of[name] for name, _, _ in wanted]
        return evaluated([Evaluation(r.outputs, r.targets, *of[1:]) for r, of in zip(records, wanted, strict=True)])

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


def _ascends(tasks: Tensor, ids: Tensor) -> bool:
    """Whether examples are sorted by task and number already, none twice."""
    later, same = tasks[1:] > tasks[:-1], tasks[1:] == tasks[:-1]
    return bool((later | (same & (ids[1:] > ids[:-1]))).all())


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
