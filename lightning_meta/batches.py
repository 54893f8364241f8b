"""What flows through the package: examples and episodes, as NamedTuples of tensors.

Lightning moves them between devices, a DataLoader pins them, and `torch.func.vmap` maps over them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

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
        query: `x` is `(T, N*Q, *input_shape)`, `y` is `(T, N*Q)`.
        ways: N, a plain number, so that nobody infers it from labels; 0 for regression.
        tasks: `(T,)` the number of each task in its split, for reports and for counting each once.
        classes: `(T, N)` which class of the split's pool each label stands for; None for regression.
    """

    support: Examples
    query: Examples
    ways: int
    tasks: Tensor
    classes: Tensor | None = None
