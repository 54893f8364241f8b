"""What flows through the package: examples, episodes and task batches, as NamedTuples of tensors.

Lightning moves them between devices, a DataLoader pins them, and `torch.func.vmap` maps over them.
"""

from __future__ import annotations

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
    `0, ..., 0, 1, ..., 1, ..., N-1`. Which class of the data set is called 0 is drawn anew in every task.

    Attributes:
        support: `x` is `(T, N*K, *input_shape)`, `y` is `(T, N*K)`.
        query: `x` is `(T, N*Q, *input_shape)`, `y` is `(T, N*Q)`; Q of each class, or shares from a Dirichlet.
        ways: N, a plain number, so that nobody infers it from labels; 0 for regression.
        tasks: `(T,)` the number of each task in its split, for reports and for counting each once.
        classes: `(T, N)` which class of the split's pool each label stands for; None for regression.
    """

    support: Examples
    query: Examples
    ways: int
    tasks: Tensor
    classes: Tensor | None = None


class Common(dict[str, Tensor]):
    """Rows of tasks that all have every input of a batch, in order."""


class Consecutive(dict[str, Tensor]):
    """Rows of tasks that lie one task after the other: all inputs of a batch, each of one task."""


def _flattened(rows: dict[str, Tensor]) -> tuple[list[Tensor], list[str]]:
    return list(rows.values()), list(rows)


# Pytrees would take a derived dictionary for a single value.
register_pytree_node(Common, _flattened, lambda rows, names: Common(zip(names, rows, strict=True)))
register_pytree_node(Consecutive, _flattened, lambda rows, names: Consecutive(zip(names, rows, strict=True)))


class TaskBatch(NamedTuple):
    """A batch of several tasks' labelled examples.

    One input with several targets, a data set of its own for each task, and missing labels are one case: a task says
    which rows of the inputs it has a label for, and the backbone sees every row once.

    Attributes:
        inputs: `(B, *input_shape)`; where tasks have inputs of different shapes, one such tensor per task's name.
        targets: By name of the task, `(n_i, ...)`. A task that is not a key is absent from the batch; one whose tensor
            is empty is present on another rank.
        rows: By name, `(n_i,)` int64: the row of `inputs` that each target belongs to; `Common` or `Consecutive` where
            that is known of them.
        ids: By name, `(n_i,)` int64: the number of each labelled example in its task's split.
        weights: By name, `(n_i,)`: what the loss of each example is multiplied by; None for 1.
    """

    inputs: Tensor | dict[str, Tensor]
    targets: dict[str, Tensor]
    rows: dict[str, Tensor]
    ids: dict[str, Tensor]
    weights: dict[str, Tensor] | None = None


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as plain text, such as "uint8"."""
    return str(dtype).removeprefix("torch.")
