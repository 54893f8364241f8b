"""The batch types of the package: examples, episodes and task batches, as NamedTuples of tensors.

Lightning can move them between devices, a DataLoader can pin them, and `torch.func.vmap` can map over them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Examples(NamedTuple):
    """Inputs and targets of the same examples.

    Attributes:
        x: Inputs, `(..., M, *input_shape)`; images are uint8 in [0, 255], channels first.
        y: Targets, `(..., M)` class labels in [0, N) as int64, or `(..., M, outputs)` real values.
    """

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """A meta-batch of T few-shot tasks, each a support and a query set of N classes, way-major.

    Way-major: the K support examples of class 0 come first, then those of class 1, so that `support.y` is
    `0, ..., 0, 1, ..., 1, ..., N-1`. The assignment of labels to classes of the data set is drawn
    for each task.

    Attributes:
        support: `x` is `(T, N*K, *input_shape)`, `y` is `(T, N*K)`.
        query: `x` is `(T, N*Q, *input_shape)`, `y` is `(T, N*Q)`; Q of each class, or shares from a Dirichlet
            distribution.
        ways: N, as a plain number, so that it need not be inferred from labels; 0 for regression.
        tasks: `(T,)` number of each task in its split, for reports and to count each task once.
        classes: `(T, N)` class of the split's pool for each label; None for regression.
    """

    support: Examples
    query: Examples
    ways: int
    tasks: Tensor
    classes: Tensor | None = None


class Common(dict[str, Tensor]):
    """The `rows` of a batch in which every task has a target for every input, in order."""


class Consecutive(dict[str, Tensor]):
    """The `rows` of a batch in which every input belongs to one task, and the inputs are ordered by task."""


def _flattened(rows: dict[str, Tensor]) -> tuple[list[Tensor], list[str]]:
    return list(rows.values()), list(rows)


# By default, pytrees treat subclasses of dict as leaves.
register_pytree_node(Common, _flattened, lambda rows, names: Common(zip(names, rows, strict=True)))
register_pytree_node(Consecutive, _flattened, lambda rows, names: Consecutive(zip(names, rows, strict=True)))


class TaskBatch(NamedTuple):
    """A batch of several tasks' labelled examples.

    Each task lists the rows of the inputs for which it has labels. This covers inputs with several targets, a separate
    data set for each task, and missing labels; the backbone processes every row once.

    Attributes:
        inputs: `(B, *input_shape)`; if the tasks' input shapes differ, one such tensor by name of each task.
        targets: `(n_i, ...)` targets by name of the task. A task without a key is absent from the batch; one with an
            empty tensor is present on another rank.
        rows: `(n_i,)` int64 by name of the task: row of `inputs` of each target; a `Common` or `Consecutive` if the
            rows are known to be so. Batches may share these tensors, so do not change them in place.
        ids: `(n_i,)` int64 by name of the task: number of each labelled example in the task's split.
        weights: `(n_i,)` by name of the task: factor of the loss of each example; None for 1.
    """

    inputs: Tensor | dict[str, Tensor]
    targets: dict[str, Tensor]
    rows: dict[str, Tensor]
    ids: dict[str, Tensor]
    weights: dict[str, Tensor] | None = None

    def to(self, device: torch.device | str) -> TaskBatch:
        """Return the batch on a device; Lightning calls this. A tensor that several tasks have is moved once."""
        device = torch.device(device)
        wait = device.type in ("cpu", "mps")  # as in Lightning
        return self._mapped(lambda x: x.to(device, non_blocking=not wait))

    def pin_memory(self) -> TaskBatch:
        """Return the batch in pinned memory; a DataLoader calls this. A tensor of several tasks is pinned once."""
        return self._mapped(lambda x: x.pin_memory())

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        """Apply a function to each tensor, once to one that several tasks have."""
        mapped: dict[int, Tensor] = {}

        def one(x: Tensor) -> Tensor:
            if id(x) not in mapped:
                mapped[id(x)] = function(x)
            return mapped[id(x)]

        def each(of: dict[str, Tensor]) -> dict[str, Tensor]:
            return type(of)(zip(of, map(one, of.values()), strict=True))

        inputs, targets, rows, ids, weights = self
        return TaskBatch(
            each(inputs) if isinstance(inputs, dict) else one(inputs),
            each(targets),
            each(rows),
            each(ids),
            None if weights is None else each(weights),
        )


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as "uint8"."""
    return str(dtype).removeprefix("torch.")
