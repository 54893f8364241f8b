"""The stored examples of several tasks: one split of a multi-task data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.batches import Common, Consecutive, Examples, TaskBatch, dtype_name
from lightning_meta.checks import instance
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import loses_digits
from lightning_meta.nn.likeness import SAMPLE, input_statistics, without

# Most examples of all tasks for which joined tensors are stored as well, so that a batch takes a single gather. With
# more examples, a gather for each task costs little in comparison.
_MOST_JOINED = 10_000_000

_LINE = 64  # bytes; torch begins each tensor in memory at a multiple of it


@dataclass(frozen=True)
class TaskSet:
    """The labelled examples of every task in one split, in the layout of one large `TaskBatch`.

    Example:
        >>> x, kinds, sizes = torch.rand(3, 4), torch.tensor([0, 1, 1]), torch.rand(2, 1)
        >>> tasks = TaskSet.of_examples({"kind": Examples(x, kinds), "size": Examples(x[:2], sizes)})
        >>> tasks.counts
        {'kind': 3, 'size': 2}

    Attributes:
        inputs: Inputs `(n, *input_shape)`, uint8 for images; if tasks have inputs of different shapes, one tensor per
            task, by name.
        targets: Targets of each task by name, `(n_i, ...)`.
        rows: Row of `inputs` of each target, by name of the task, `(n_i,)` int64 in ascending order.
        weights: Factor of the loss of each example, by name of the task, `(n_i,)`; None for 1.
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
                raise ValueError(f"task {name!r}: rows must be in ascending order, without duplicates")

    @classmethod
    def of_examples(cls, examples: Mapping[str, Examples]) -> TaskSet:
        """Make a set of tasks with a separate data set each; inputs are joined unless their shapes or dtypes differ.

        Args:
            examples: Inputs `(n_i, *input_shape)` and targets `(n_i, ...)` of each task, by name.

        Raises:
            UserError: There is no task, or one has different numbers of targets and inputs.
        """
        if not examples:
            raise UserError("a TaskSet needs one task at least, got none")
        for name, (x, y) in examples.items():
            instance(f"inputs of task {name!r}", x, Tensor)
            instance(f"targets of task {name!r}", y, Tensor)
            if len(x) != len(y):
                raise UserError(f"task {name!r} has {len(x)} inputs and {len(y)} targets; every input needs one")
        targets = {name: y for name, (_, y) in examples.items()}
        counts = [len(y) for y in targets.values()]
        if len({(x.shape[1:], x.dtype) for x, _ in examples.values()}) > 1:
            separate = {name: x for name, (x, _) in examples.items()}
            return cls(separate, targets, {name: torch.arange(len(y), device=y.device) for name, y in targets.items()})
        starts = [sum(counts[:i]) for i in range(len(counts))]
        rows = {
            name: torch.arange(s, s + len(y), device=y.device)
            for s, (name, y) in zip(starts, targets.items(), strict=True)
        }
        return cls(torch.cat([x for x, _ in examples.values()]), targets, rows)

    @classmethod
    def of_columns(cls, inputs: Tensor, columns: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> TaskSet:
        """Make a set whose inputs have a target for each of several tasks, some of which may be missing.

        Args:
            inputs: Inputs `(n, *input_shape)`.
            columns: Targets of each task by name, `(n, ...)`; those that are missing are ignored.
            present: Masks of the targets that are not missing, by name of the task, `(n,)` bool.
        """
        rows = {name: mask.nonzero()[:, 0] for name, mask in present.items()}
        return cls(inputs, {name: column[rows[name]] for name, column in columns.items()}, rows)

    @property
    def names(self) -> list[str]:
        """Names of the tasks, in order."""
        return list(self.targets)

    @property
    def counts(self) -> dict[str, int]:
        """Number of labelled examples of each task."""
        return {name: len(rows) for name, rows in self.rows.items()}

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one input of each task."""
        inputs = self.inputs
        return {n: tuple((inputs[n] if isinstance(inputs, dict) else inputs).shape[1:]) for n in self.targets}

    @cached_property
    def overlapping(self) -> bool:
        """Whether some input has targets of more than one task."""
        if isinstance(self.inputs, dict) or not self.rows:
            return False
        rows = torch.cat(list(self.rows.values()))
        return len(rows.unique()) < len(rows)

    @cached_property
    def position_table(self) -> Tensor:
        """Index of each row among the targets of each task, `(T, n)`; -1 if the task has no target for the row."""
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
        """Whether there are several tasks, with targets for exactly the same rows of a single input tensor."""
        first, *others = self.rows.values()
        single = isinstance(self.inputs, Tensor) and len(first) > 0
        return single and bool(others) and all(torch.equal(rows, first) for rows in others)

    @cached_property
    def _joined(self) -> _Joined:
        counts = torch.tensor([len(rows) for rows in self.rows.values()])
        begins = counts.cumsum(0) - counts
        large = int(counts.sum()) > _MOST_JOINED
        rows, targets, weights = (
            None if by_task is None or large else _in_one(by_task)
            for by_task in (self.rows, self.targets, self.weights)
        )
        in_order = rows is not None and torch.equal(rows, torch.arange(len(rows), device=rows.device))
        return _Joined(begins, dict(zip(self.rows, begins.tolist(), strict=True)), rows, targets, weights, in_order)

    @cached_property
    def _every_row(self) -> bool:
        """Whether the first task has a label for every row, so that its examples have the numbers of the rows."""
        return len(next(iter(self.rows.values()))) == len(self.inputs)

    def select(self, names: Sequence[str]) -> TaskSet:
        """Return the set of the given tasks, in this order, with only the inputs for which they have targets."""
        targets, rows = {n: self.targets[n] for n in names}, {n: self.rows[n] for n in names}
        weights = None if self.weights is None else {n: self.weights[n] for n in names}
        if isinstance(self.inputs, dict):
            selected = TaskSet.of_examples({n: Examples(self.inputs[n], targets[n]) for n in names})
            return replace(selected, weights=weights)
        kept = torch.cat(list(rows.values())).unique()
        new_row = torch.full((len(self.inputs),), -1, device=kept.device)
        new_row[kept] = torch.arange(len(kept), device=kept.device)
        return TaskSet(self.inputs[kept], targets, {n: new_row[r] for n, r in rows.items()}, weights)

    def weighing(self) -> TaskSet:
        """Return the set without the examples of weight 0."""
        if self.weights is None or all(bool((of_task > 0).all()) for of_task in self.weights.values()):
            return self
        kept = {name: of_task > 0 for name, of_task in self.weights.items()}
        of_kept = ({n: v[kept[n]] for n, v in values.items()} for values in (self.targets, self.rows, self.weights))
        targets, rows, weights = of_kept
        return replace(self, targets=targets, rows=rows, weights=weights)

    @cached_property
    def device(self) -> torch.device:
        """Device of the examples."""
        return next(iter(self.rows.values())).device

    @property
    def input_dtypes(self) -> dict[str, str]:
        """Name of the dtype of the inputs of each task, such as "uint8"."""
        inputs = self.inputs
        return {n: dtype_name((inputs[n] if isinstance(inputs, dict) else inputs).dtype) for n in self.targets}

    @property
    def input_statistics(self) -> dict[str, tuple[float, ...]]:
        """Range and brightness of the inputs of each task, from `lightning_meta.nn.likeness.input_statistics`."""
        return self.statistics_without(())

    def statistics_without(self, coded: Sequence[int]) -> dict[str, tuple[float, ...]]:
        """Return the `input_statistics` without inputs that are codes of categories.

        Args:
            coded: Indices of the inputs to leave out.
        """
        inputs = self.inputs
        statistics = {}
        for name, rows in self.rows.items():
            sampled = rows[:: max(1, len(rows) // SAMPLE)]
            sample = (inputs[name] if isinstance(inputs, dict) else inputs)[sampled]
            statistics[name] = input_statistics(without(sample, coded) if coded else sample)
        return statistics

    def to(self, device: torch.device | str, float64: bool = True) -> TaskSet:
        """Return the set with its tensors on a device.

        Args:
            device: The device.
            float64: Whether the accelerator supports float64; if not, `without_float64` converts the tensors.
        """
        if not float64:
            return self.without_float64().to(device)
        if self.device == torch.device(device):
            return self
        inputs = self.inputs
        moved = {n: x.to(device) for n, x in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
        targets, rows = ({n: t.to(device) for n, t in d.items()} for d in (self.targets, self.rows))
        weights = None if self.weights is None else {n: w.to(device) for n, w in self.weights.items()}
        return TaskSet(moved, targets, rows, weights)

    def without_float64(self) -> TaskSet:
        """Return the set with float64 inputs, targets and weights converted to float32.

        Raises:
            UserError: Different targets of a task would become equal.
        """

        def narrow(x: Tensor) -> Tensor:
            return x.float() if x.dtype == torch.float64 else x

        inputs = self.inputs
        tensors = [*(inputs.values() if isinstance(inputs, dict) else [inputs]), *self.targets.values()]
        tensors += (self.weights or {}).values()
        if not any(tensor.dtype == torch.float64 for tensor in tensors):
            return self
        for name, y in self.targets.items():
            if y.dtype == torch.float64 and loses_digits(y, torch.float32):
                raise UserError(
                    f"task {name!r}: this accelerator has no float64, and float32 cannot distinguish the targets, such "
                    f"as {y.flatten()[0].item()}; subtract a constant from them, or train with accelerator=cpu"
                )
        narrowed = {n: narrow(x) for n, x in inputs.items()} if isinstance(inputs, dict) else narrow(inputs)
        weights = None if self.weights is None else {n: narrow(w) for n, w in self.weights.items()}
        return TaskSet(narrowed, {n: narrow(y) for n, y in self.targets.items()}, self.rows, weights)

    def batch(self, ids: Mapping[str, Tensor]) -> TaskBatch:
        """Gather labelled examples into a batch.

        Args:
            ids: Numbers of the labelled examples of each task in the batch, by name, `(n_i,)`, all on one device.

        Returns:
            The batch, on the device of the set. An input with targets of several tasks occurs in it once. If the set is
            `aligned` and all tasks have the same tensor of distinct numbers, the examples are in the order of the
            inputs.
        """
        names, joined, common = list(ids), self._joined, self._common(ids)
        counts = [] if common is not None else [i.shape[0] for i in ids.values()]

        def by_task(values: Tensor) -> dict[str, Tensor]:
            return dict(zip(names, values.split_with_sizes(counts), strict=True))

        if common is not None:
            ids = dict.fromkeys(names, common)
        else:
            flat = torch.cat(list(ids.values()))
            places = self._places(flat, names, counts).to(self.device)
            ids = dict(ids) if flat.device == self.device else by_task(flat.to(self.device))

        def gathered(values: dict[str, Tensor], joined: Tensor | None) -> dict[str, Tensor]:
            if joined is None:
                return {name: values[name][i] for name, i in ids.items()}
            if common is not None:
                of_tasks = joined.unflatten(0, (len(names), -1)).index_select(1, common)
                return dict(zip(names, of_tasks.unbind(), strict=True))
            return by_task(joined.index_select(0, places))

        targets = gathered(self.targets, joined.targets)
        weights = None if self.weights is None else gathered(self.weights, joined.weights)
        if isinstance(self.inputs, dict):
            batch_rows = {name: torch.arange(len(i), device=i.device) for name, i in ids.items()}
            inputs = {name: self.inputs[name][r] for name, r in gathered(self.rows, joined.rows).items()}
            return TaskBatch(inputs, targets, batch_rows, ids, weights)
        if common is not None:
            rows = common if self._every_row else self.rows[names[0]][common]
            batch_rows = Common.fromkeys(names, *self._numbered([common.shape[0]]))
            return TaskBatch(self.inputs.index_select(0, rows), targets, batch_rows, ids, weights)
        if joined.in_order:
            rows = places
        elif joined.rows is None:
            rows = torch.cat(list(gathered(self.rows, None).values()))
        else:
            rows = joined.rows.index_select(0, places)
        if self.overlapping:
            distinct, batch_row = rows.unique(return_inverse=True)
            return TaskBatch(self.inputs[distinct], targets, by_task(batch_row), ids, weights)
        consecutive = Consecutive(zip(names, self._numbered(counts), strict=True))
        return TaskBatch(self.inputs.index_select(0, rows), targets, consecutive, ids, weights)

    @cached_property
    def can_gather_several(self) -> bool:
        """Whether `several` can be called: the set has one tensor each of inputs, targets and weights, if any."""
        joined = self._joined
        complete = joined.rows is not None and joined.targets is not None and isinstance(self.inputs, Tensor)
        weighted = self.weights is None or joined.weights is not None
        return complete and weighted and (self.aligned or not self.overlapping)

    @property
    def example_bytes(self) -> int:
        """Bytes of an example in a batch: its number, input, target and weight."""
        tensors = [self.inputs, self._joined.targets, self._joined.weights]
        return 8 + sum(x[:1].nbytes for x in tensors if isinstance(x, Tensor))

    def several(self, ids: Tensor) -> Iterator[TaskBatch]:
        """Gather several batches at once, equal to those of `batch`.

        Args:
            ids: Numbers of the labelled examples in K batches, of which each has n examples of each task, `(K, T, n)`;
                `(K, n)` if they are the same for all tasks of an `aligned` set, in ascending order.

        Returns:
            The K batches.
        """
        joined, names, common = self._joined, self.names, ids.dim() == 2
        assert isinstance(self.inputs, Tensor)
        assert joined.rows is not None
        assert joined.targets is not None
        places = (ids.unsqueeze(1) if common else ids) + joined.begins.unsqueeze(1)
        ids, places = ids.to(self.device), places.to(self.device)
        rows = places[:, 0] if common else places.flatten(1)
        if not (joined.in_order or (common and self._every_row)):
            rows = joined.rows[rows]
        _, tasks, n = places.shape
        places = places.flatten()

        def by_task(values: Tensor) -> Iterator[dict[str, Tensor]]:
            of_batches = _placed(values.unflatten(0, (-1, tasks, n)).unbind())
            return (dict(zip(names, of_batch.unbind(), strict=True)) for of_batch in of_batches)

        inputs = _placed(self.inputs.index_select(0, rows.flatten()).unflatten(0, rows.shape).unbind())
        targets = by_task(joined.targets.index_select(0, places))
        weights = repeat(None) if joined.weights is None else by_task(joined.weights.index_select(0, places))
        numbers: Iterator[dict[str, Tensor]]
        batch_rows: dict[str, Tensor]
        if common:
            numbers = (dict.fromkeys(names, of_batch) for of_batch in ids.unbind())
            batch_rows = Common.fromkeys(names, *self._numbered([n]))
        else:
            numbers = by_task(ids.flatten())
            batch_rows = Consecutive(zip(names, self._numbered([n] * tasks), strict=True))
        for x, y, of_batch, w in zip(inputs, targets, numbers, weights, strict=False):
            yield TaskBatch(x, y, type(batch_rows)(batch_rows), of_batch, w)

    @cached_property
    def _last_rows(self) -> dict[str, tuple[list[int], Sequence[Tensor]]]:
        return {}

    def _numbered(self, counts: list[int]) -> Sequence[Tensor]:
        """Return 0, 1, 2, ... in parts of these sizes; the tensors of the last batch if it had the same sizes."""
        of_counts, rows = self._last_rows.get("last", (None, ()))
        if of_counts != counts:
            with torch.inference_mode(False):  # so that a later backward pass may save them
                rows = torch.arange(sum(counts), device=self.device).split(counts)
            self._last_rows["last"] = counts, rows  # at once, so that threads see both or neither
        return rows

    def _common(self, ids: Mapping[str, Tensor]) -> Tensor | None:
        """Return the numbers of the examples if they are the same for all tasks of an `aligned` set.

        Args:
            ids: Numbers of the examples of each task, by name.

        Returns:
            The numbers, `(n,)`, in ascending order, on the device of the set; None if `ids` is not one tensor of
            distinct numbers for all tasks, or the set is not `aligned`.
        """
        first = next(iter(ids.values()))
        if not self.aligned or list(ids) != self.names or any(i is not first for i in ids.values()):
            return None
        ascending = first.unique()  # in the order of the inputs
        return ascending.to(self.device) if len(ascending) == len(first) else None

    def _places(self, numbers: Tensor, names: list[str], counts: list[int]) -> Tensor:
        """Return the positions of examples in the joined tensors.

        A position is the number of the example, plus the position of its task's first example.

        Args:
            numbers: Numbers of the examples, `(N,)`, one task after the other.
            names: Names of these tasks.
            counts: Number of examples of each.
        """
        joined = self._joined
        begins = joined.begins if names == self.names else torch.tensor([joined.begin[name] for name in names])
        begins = begins.to(numbers.device)
        if len(set(counts)) == 1:
            return (numbers.view(len(names), counts[0]) + begins.unsqueeze(1)).view(-1)
        return numbers + begins.repeat_interleave(torch.tensor(counts, device=numbers.device))


class _Joined(NamedTuple):
    """The examples of all T tasks concatenated, so that a batch takes one gather instead of one for each task.

    The tensors are None if there are more than `_MOST_JOINED` examples, or if those of the tasks differ in shape or
    dtype.

    Attributes:
        begins: Index of the first example of each task, `(T,)`.
        begin: Index of the first example of each task, by name.
        rows: Rows of the inputs, as in `TaskSet`.
        targets: Targets.
        weights: Weights; None if the set has none.
        in_order: Whether `rows` is 0, 1, 2, ...; False if it is None.
    """

    begins: Tensor
    begin: dict[str, int]
    rows: Tensor | None
    targets: Tensor | None
    weights: Tensor | None
    in_order: bool


def _placed(views: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return views of a joint tensor, or copies if the views do not all begin at a multiple of 64 bytes.

    Tensors of their own do. The rounding of matrix products depends on it, so a run that is resumed among these batches
    would differ in the last bits.
    """
    return views if views[0].nbytes % _LINE == 0 else [view.clone() for view in views]


def _in_one(by_task: dict[str, Tensor]) -> Tensor | None:
    values = list(by_task.values())
    return torch.cat(values) if len({(v.dtype, v.shape[1:]) for v in values}) == 1 else None
