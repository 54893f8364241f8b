"""The stored examples of several tasks: one split of a multi-task data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_meta.batches import Examples, TaskBatch, dtype_name
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import loses_digits
from lightning_meta.nn.likeness import SAMPLE, input_statistics


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
    def _joined(self) -> tuple[dict[str, int], Tensor, Tensor | None, Tensor | None]:
        """Where each task's examples begin in the rows, targets and weights of all; None for targets that differ."""
        starts, start = {}, 0
        for name, rows in self.rows.items():
            starts[name], start = start, start + len(rows)
        targets, weights = (None if of is None else list(of.values()) for of in (self.targets, self.weights))
        assert targets is not None
        alike = len({(y.dtype, y.shape[1:]) for y in targets}) == 1
        weighted = weights is not None and len({w.dtype for w in weights}) == 1
        joined = torch.cat(targets) if alike else None
        return starts, torch.cat(list(self.rows.values())), joined, torch.cat(weights or []) if weighted else None

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

    @property
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
        inputs = self.inputs
        found = {}
        for name, rows in self.rows.items():
            few = rows[:: max(1, len(rows) // SAMPLE)]
            found[name] = input_statistics((inputs[name] if isinstance(inputs, dict) else inputs)[few])
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
            ids: By name of the tasks in the batch, `(n_i,)` numbers of labelled examples, on any device.

        Returns:
            The batch, where the set lies; an input that several tasks have labels for stands in it once.
        """
        starts, all_rows, all_targets, all_weights = self._joined
        counts = [len(i) for i in ids.values()]
        flat = torch.cat(list(ids.values()))
        begins = torch.tensor([starts[name] for name in ids], device=flat.device)
        places = (flat + begins.repeat_interleave(torch.tensor(counts, device=flat.device))).to(self.device)
        ids = dict(zip(ids, flat.to(self.device).split(counts), strict=True))
        of_all = all_rows[places]
        rows = dict(zip(ids, of_all.split(counts), strict=True))
        if all_targets is None:
            targets = {name: self.targets[name][i] for name, i in ids.items()}
        else:
            targets = dict(zip(ids, all_targets[places].split(counts), strict=True))
        weights = None
        if self.weights is not None and all_weights is not None:
            weights = dict(zip(ids, all_weights[places].split(counts), strict=True))
        elif self.weights is not None:
            weights = {name: self.weights[name][i] for name, i in ids.items()}
        if isinstance(self.inputs, dict):
            here = {name: torch.arange(len(i), device=i.device) for name, i in ids.items()}
            return TaskBatch({name: self.inputs[name][r] for name, r in rows.items()}, targets, here, ids, weights)
        if not self.overlapping:
            parts = torch.arange(len(of_all), device=of_all.device).split(counts)
            return TaskBatch(self.inputs[of_all], targets, dict(zip(ids, parts, strict=True)), ids, weights)
        if len(set(counts)) == 1:
            table = of_all.view(len(ids), counts[0])
            if bool((table == table[0]).all()):  # every task has a label for every input: all have the same rows
                wanted, place = table[0].unique(return_inverse=True)
                return TaskBatch(self.inputs[wanted], targets, dict.fromkeys(ids, place), ids, weights)
        wanted, place = of_all.unique(return_inverse=True)
        parts = place.split(counts)
        return TaskBatch(self.inputs[wanted], targets, dict(zip(ids, parts, strict=True)), ids, weights)
