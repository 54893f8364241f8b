"""The stored examples of several tasks: one split of a multi-task data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.batches import Common, Consecutive, Examples, TaskBatch, dtype_name
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import loses_digits
from lightning_meta.nn.likeness import SAMPLE, input_statistics, without

_MOST_JOINED = 10_000_000  # examples of all tasks; a gather for each task costs little where they have so many


@dataclass(frozen=True)
class TaskSet:
    """The labelled examples of every task in one split, laid out like one large `TaskBatch`.

    Attributes:
        inputs: `(n, *input_shape)`, uint8 for images; where tasks have inputs of different shapes, one tensor a task.
        targets: By name of the task, `(n_i, ...)`.
        rows: By name, `(n_i,)` int64 in ascending order: the row of `inputs` that each target belongs to.
        weights: By name, `(n_i,)`: what the loss of each example is multiplied by; None for 1.
    """

    inputs: Tensor | dict[str, Tensor]
    targets: dict[str, Tensor]
    rows: dict[str, Tensor]
    weights: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if list(self.targets) != list(self.rows):
            raise ValueError(f"targets and rows name the same tasks, got {list(self.targets)} and {list(self.rows)}")
        for name, rows in self.rows.items():
            if len(rows) != len(self.targets[name]):
                raise ValueError(f"task {name!r} has {len(self.targets[name])} targets for {len(rows)} rows")
            if self.weights is not None and len(self.weights[name]) != len(rows):
                raise ValueError(f"task {name!r} has {len(self.weights[name])} weights for {len(rows)} rows")
            if len(rows) > 1 and not (rows.diff() > 0).all():
                raise ValueError(f"task {name!r}: rows ascend, and none is named twice")

    @classmethod
    def of_examples(cls, examples: Mapping[str, Examples]) -> TaskSet:
        """Tasks with a data set each; inputs are kept apart only where their shapes differ.

        Args:
            examples: By name of the task, inputs `(n_i, *input_shape)` and targets `(n_i, ...)`.

        Raises:
            UserError: A task has more or fewer targets than inputs.
        """
        for name, (x, y) in examples.items():
            if len(x) != len(y):
                raise UserError(f"task {name!r} has {len(x)} inputs and {len(y)} targets; every input needs one")
        targets = {name: y for name, (_, y) in examples.items()}
        counts = [len(y) for y in targets.values()]
        if len({(x.shape[1:], x.dtype) for x, _ in examples.values()}) > 1:
            apart = {name: x for name, (x, _) in examples.items()}
            return cls(apart, targets, {name: torch.arange(len(y), device=y.device) for name, y in targets.items()})
        starts = [sum(counts[:i]) for i in range(len(counts))]
        rows = {
            name: torch.arange(s, s + len(y), device=y.device)
            for s, (name, y) in zip(starts, targets.items(), strict=True)
        }
        return cls(torch.cat([x for x, _ in examples.values()]), targets, rows)

    @classmethod
    def of_columns(cls, inputs: Tensor, columns: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> TaskSet:
        """One input with several targets, some of them missing.

        Args:
            inputs: `(n, *input_shape)`.
            columns: By name of the task, `(n, ...)` targets.
            present: By name, `(n,)` bool: which targets are there.
        """
        rows = {name: mask.nonzero()[:, 0] for name, mask in present.items()}
        return cls(inputs, {name: column[rows[name]] for name, column in columns.items()}, rows)

    @property
    def names(self) -> list[str]:
        """The tasks, in order."""
        return list(self.targets)

    @property
    def counts(self) -> dict[str, int]:
        """How many labelled examples each task has."""
        return {name: len(rows) for name, rows in self.rows.items()}

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one input, by task."""
        inputs = self.inputs
        return {n: tuple((inputs[n] if isinstance(inputs, dict) else inputs).shape[1:]) for n in self.targets}

    @cached_property
    def overlapping(self) -> bool:
        """Whether an input has targets of more than one task."""
        if isinstance(self.inputs, dict) or not self.rows:
            return False
        rows = torch.cat(list(self.rows.values()))
        return len(rows.unique()) < len(rows)

    @cached_property
    def position_table(self) -> Tensor:
        """For each task and every row of the inputs, which of the task's targets belongs to it, or -1: `(T, n)`."""
        assert isinstance(self.inputs, Tensor)
        table = torch.full((len(self.rows), len(self.inputs)), -1)
        for positions, rows in zip(table, self.rows.values(), strict=True):
            positions[rows.cpu()] = torch.arange(len(rows))
        return table

    @property
    def positions(self) -> dict[str, Tensor]:
        """The rows of `position_table` by task."""
        return dict(zip(self.rows, self.position_table, strict=True))

    @cached_property
    def aligned(self) -> bool:
        """Whether there are several tasks, with labels for exactly the same rows of one tensor."""
        first, *others = self.rows.values()
        one = isinstance(self.inputs, Tensor) and len(first) > 0
        return one and bool(others) and all(torch.equal(rows, first) for rows in others)

    @cached_property
    def _joined(self) -> _Joined:
        counts = torch.tensor([len(rows) for rows in self.rows.values()])
        begins = counts.cumsum(0) - counts
        large = int(counts.sum()) > _MOST_JOINED
        columns = (None if of is None or large else _in_one(of) for of in (self.rows, self.targets, self.weights))
        rows, targets, weights = columns
        in_order = rows is not None and torch.equal(rows, torch.arange(len(rows), device=rows.device))
        return _Joined(begins, dict(zip(self.rows, begins.tolist(), strict=True)), rows, targets, weights, in_order)

    @cached_property
    def _every_row(self) -> bool:
        """Whether the first task has a label for every row, so that its examples have the numbers of the rows."""
        return len(next(iter(self.rows.values()))) == len(self.inputs)

    @cached_property
    def _last_rows(self) -> dict[str, Any]:
        return {}

    def select(self, names: Sequence[str]) -> TaskSet:
        """The set of a few tasks, in the order given; the rows of the others stay behind unless they are shared."""
        targets, rows = {n: self.targets[n] for n in names}, {n: self.rows[n] for n in names}
        weights = None if self.weights is None else {n: self.weights[n] for n in names}
        if isinstance(self.inputs, dict):
            found = TaskSet.of_examples({n: Examples(self.inputs[n], targets[n]) for n in names})
            return replace(found, weights=weights)
        kept = torch.cat(list(rows.values())).unique()
        place = torch.full((len(self.inputs),), -1, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        return TaskSet(self.inputs[kept], targets, {n: place[r] for n, r in rows.items()}, weights)

    @cached_property
    def device(self) -> torch.device:
        """Where the examples lie."""
        return next(iter(self.rows.values())).device

    @property
    def input_dtypes(self) -> dict[str, str]:
        """The dtype of the inputs, by task, such as "uint8"."""
        inputs = self.inputs
        return {n: dtype_name((inputs[n] if isinstance(inputs, dict) else inputs).dtype) for n in self.targets}

    @property
    def input_statistics(self) -> dict[str, tuple[float, ...]]:
        """Range and brightness of the inputs, by task."""
        return self.statistics_without(())

    def statistics_without(self, coded: Sequence[int]) -> dict[str, tuple[float, ...]]:
        """The same of some inputs.

        Args:
            coded: The places of those that are left out, the codes of categories.
        """
        inputs = self.inputs
        found = {}
        for name, rows in self.rows.items():
            few = rows[:: max(1, len(rows) // SAMPLE)]
            sample = (inputs[name] if isinstance(inputs, dict) else inputs)[few]
            found[name] = input_statistics(without(sample, coded) if coded else sample)
        return found

    def to(self, device: torch.device | str) -> TaskSet:
        """The set with its tensors on a device."""
        if self.device == torch.device(device):
            return self
        inputs = self.inputs
        moved = {n: x.to(device) for n, x in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
        targets, rows = ({n: t.to(device) for n, t in d.items()} for d in (self.targets, self.rows))
        weights = None if self.weights is None else {n: w.to(device) for n, w in self.weights.items()}
        return TaskSet(moved, targets, rows, weights)

    def without_float64(self) -> TaskSet:
        """The set with float32 in place of float64 inputs and targets.

        Raises:
            UserError: Targets of a task would become the same.
        """

        def narrow(x: Tensor) -> Tensor:
            return x.float() if x.dtype == torch.float64 else x

        inputs = self.inputs
        tensors = [*(inputs.values() if isinstance(inputs, dict) else [inputs]), *self.targets.values()]
        if not any(tensor.dtype == torch.float64 for tensor in tensors):
            return self
        for name, y in self.targets.items():
            if y.dtype == torch.float64 and loses_digits(y, torch.float32):
                raise UserError(
                    f"task {name!r}: this accelerator has no float64, and float32 cannot tell the targets apart, such "
                    f"as {y.flatten()[0].item()}; subtract a constant from them, or train with accelerator=cpu"
                )
        narrowed = {n: narrow(x) for n, x in inputs.items()} if isinstance(inputs, dict) else narrow(inputs)
        weights = None if self.weights is None else {n: narrow(w) for n, w in self.weights.items()}
        return TaskSet(narrowed, {n: narrow(y) for n, y in self.targets.items()}, self.rows, weights)

    def batch(self, ids: Mapping[str, Tensor]) -> TaskBatch:
        """Gather labelled examples.

        Args:
            ids: By name of the tasks in the batch, `(n_i,)` numbers of labelled examples, all on one device.

        Returns:
            The batch, where the set lies; an input that several tasks have labels for stands in it once. Where tasks
            are `aligned` and the numbers of all are one tensor, they come in the order of the inputs.
        """
        first = next(iter(ids.values()))
        if self.aligned and list(ids) == self.names and all(i is first for i in ids.values()):
            once = first.unique()  # in the order of the inputs
            if once.shape == first.shape:
                return self._common(once.to(self.device))
        names, parts = list(ids), list(ids.values())
        counts, joined = [i.shape[0] for i in parts], self._joined
        begins = joined.begins if names == self.names else torch.tensor([joined.begin[name] for name in names])
        flat, begins = torch.cat(parts), begins.to(parts[0].device)
        if len(set(counts)) == 1:
            flat_places = (flat.view(len(names), counts[0]) + begins.unsqueeze(1)).view(-1)
        else:
            flat_places = flat + begins.repeat_interleave(torch.tensor(counts, device=flat.device))
        places = flat_places.to(self.device)

        def by_task(values: Tensor) -> dict[str, Tensor]:
            return dict(zip(names, values.split_with_sizes(counts), strict=True))

        def gathered(of: dict[str, Tensor], joined: Tensor | None) -> dict[str, Tensor]:
            return {n: of[n][i] for n, i in ids.items()} if joined is None else by_task(joined.index_select(0, places))

        ids = dict(ids) if flat.device == self.device else by_task(flat.to(self.device))
        targets = gathered(self.targets, joined.targets)
        weights = None if self.weights is None else gathered(self.weights, joined.weights)
        if isinstance(self.inputs, dict):
            here = {name: torch.arange(len(i), device=i.device) for name, i in ids.items()}
            inputs = {name: self.inputs[name][own] for name, own in gathered(self.rows, joined.rows).items()}
            return TaskBatch(inputs, targets, here, ids, weights)
        if joined.in_order:
            rows = places
        elif joined.rows is None:
            rows = torch.cat(list(gathered(self.rows, None).values()))
        else:
            rows = joined.rows.index_select(0, places)
        if self.overlapping:
            wanted, place = rows.unique(return_inverse=True)
            return TaskBatch(self.inputs[wanted], targets, by_task(place), ids, weights)
        return TaskBatch(self.inputs.index_select(0, rows), targets, self._consecutive(names, counts), ids, weights)

    def _consecutive(self, names: list[str], counts: list[int]) -> Consecutive:
        """The rows of a batch of so many examples of each task; those of the last batch if it had as many."""
        last = self._last_rows
        if last.get("counts") != counts:
            with torch.inference_mode(False):  # so that they may be saved for a backward pass later
                last["counts"], last["rows"] = counts, torch.arange(sum(counts), device=self.device).split(counts)
        return Consecutive(zip(names, last["rows"], strict=True))

    def _common(self, ids: Tensor) -> TaskBatch:
        """The same examples of all tasks, which are `aligned`; their numbers ascend."""

        def by_task(of: dict[str, Tensor], joined: Tensor | None) -> dict[str, Tensor]:
            if joined is None:
                return {name: values[ids] for name, values in of.items()}
            of_tasks = joined.view(len(of), -1, *joined.shape[1:])
            return dict(zip(of, of_tasks.index_select(1, ids).unbind(), strict=True))

        assert isinstance(self.inputs, Tensor)
        targets = by_task(self.targets, self._joined.targets)
        weights = None if self.weights is None else by_task(self.weights, self._joined.weights)
        rows = Common.fromkeys(self.rows, torch.arange(len(ids), device=ids.device))
        inputs = self.inputs.index_select(0, ids if self._every_row else next(iter(self.rows.values()))[ids])
        return TaskBatch(inputs, targets, rows, dict.fromkeys(self.rows, ids), weights)


class _Joined(NamedTuple):
    """The examples of all tasks, one task after the other, so that a batch is one gather and not one for each task.

    Attributes:
        begins: `(T,)` where each task's begin.
        begin: The same, by name.
        rows: Those of `TaskSet`; like the others None where they are too many to be stored twice.
        targets: None where those of tasks differ in shape or kind.
        weights: None where there are none.
        in_order: Whether `rows` is known to be 0, 1, 2, ...
    """

    begins: Tensor
    begin: dict[str, int]
    rows: Tensor | None
    targets: Tensor | None
    weights: Tensor | None
    in_order: bool


def _in_one(of: dict[str, Tensor]) -> Tensor | None:
    values = list(of.values())
    return torch.cat(values) if len({(v.dtype, v.shape[1:]) for v in values}) == 1 else None
