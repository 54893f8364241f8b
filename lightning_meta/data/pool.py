"""Stored examples of many classes or regression tasks in one tensor, ordered by class or task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lightning_meta.arrays import tensor_of
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import loses_digits


@dataclass(frozen=True)
class Pool:
    """The examples of one split, grouped by class; classes may differ in size.

    With real-valued targets `y`, regression tasks take the place of classes, and each episode uses one of them.

    Attributes:
        x: `(n, *input_shape)` examples, ordered by class; uint8 for images.
        sizes: `(C,)` int64 number of examples of each class, in the order of `x`.
        names: The C unique class names.
        groups: Group of each class, such as an alphabet, a script or a superclass.
        rotations: 1, or 4 to add three classes for each class, with images rotated by 90, 180 and 270 degrees
            (Santoro et al. 2016). Class `r * C + c` is class `c` rotated by `90 r` degrees.
        y: `(n, outputs)` real-valued targets in their original units; None for classification.
    """

    x: Tensor
    sizes: Tensor
    names: tuple[str, ...]
    groups: tuple[str, ...]
    rotations: int = 1
    y: Tensor | None = None
    starts: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.sizes) == len(self.names) == len(self.groups):
            raise ValueError(
                f"a pool has one size, name and group per class; "
                f"got {len(self.sizes)}, {len(self.names)} and {len(self.groups)}"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError("class names of a pool are unique")
        if int(self.sizes.sum()) != len(self.x):
            raise ValueError(f"class sizes add up to {int(self.sizes.sum())}, but there are {len(self.x)} examples")
        if self.y is not None and (self.y.dim() != 2 or len(self.y) != len(self.x)):
            raise ValueError(f"targets are (n, outputs) for {len(self.x)} examples, these are {tuple(self.y.shape)}")
        object.__setattr__(self, "sizes", self.sizes.cpu())
        object.__setattr__(self, "starts", self.sizes.cumsum(0) - self.sizes)

    @classmethod
    def from_examples(
        cls,
        x: Tensor,
        y: Sequence[int],
        names: Sequence[str],
        groups: Sequence[str] | None = None,
        targets: Tensor | None = None,
    ) -> Pool:
        """Make a pool of labelled examples, whose order within a class is kept.

        Args:
            x: `(n, *input_shape)` examples.
            y: n labels in [0, C).
            names: The C class names.
            groups: Group of each class; by default "" for all classes.
            targets: `(n, outputs)` real-valued targets if the C classes are regression tasks.

        Raises:
            UserError: A label is out of range, or the numbers of labels and examples differ.
        """
        labels = (tensor_of(y) if isinstance(y, np.ndarray) else torch.as_tensor(y)).to(torch.int64)
        if len(labels) != len(x):
            raise UserError(f"{len(x)} examples have {len(labels)} labels; every example needs one")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise UserError(f"label {wrong} is out of range: there are {len(names)} classes, 0 to {len(names) - 1}")
        order = labels.argsort(stable=True)
        sizes = torch.bincount(labels, minlength=len(names))
        class_groups = tuple(groups if groups is not None else [""] * len(names))
        return cls(x[order], sizes, tuple(names), class_groups, y=None if targets is None else targets[order])

    @property
    def num_classes(self) -> int:
        """Number of classes, rotations included."""
        return len(self.names) * self.rotations

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    def rotated(self) -> Pool:
        """Return the pool with the rotations of each class by 90, 180 and 270 degrees as additional classes.

        Raises:
            UserError: The examples are not square images.
        """
        if len(self.input_shape) != 3 or self.input_shape[1] != self.input_shape[2]:
            raise UserError(
                f"rotations: only square images (channels, height, width) can be turned into new classes, "
                f"these examples are {self.input_shape}"
            )
        return replace(self, rotations=4)

    def class_names(self, classes: Iterable[int]) -> list[str]:
        """Return the names of classes; those of rotated ones are like `name@90`."""
        count = len(self.names)
        return [self.names[c % count] + (f"@{90 * (c // count)}" if c >= count else "") for c in map(int, classes)]

    def select(self, classes: Sequence[int]) -> Pool:
        """Return a pool of the given classes, in this order, with a copy of their examples."""
        chosen = torch.as_tensor(classes, dtype=torch.int64)
        sizes, starts = self.sizes[chosen], self.starts[chosen]
        ranges = [torch.arange(s, s + n) for s, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
        rows = torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)
        names, groups = [self.names[c] for c in classes], [self.groups[c] for c in classes]
        y = None if self.y is None else self.y[rows]
        return Pool(self.x[rows], sizes, tuple(names), tuple(groups), self.rotations, y)

    def to(self, device: torch.device | str, float64: bool = True) -> Pool:
        """Return the pool with examples and targets on a device; `sizes` and `starts` stay on the CPU.

        Args:
            device: The device.
            float64: Whether the accelerator supports float64; if not, `without_float64` converts the tensors.
        """
        if not float64:
            return self.without_float64().to(device)
        return replace(self, x=self.x.to(device), y=None if self.y is None else self.y.to(device))

    def without_float64(self) -> Pool:
        """Return the pool with float64 examples and targets converted to float32.

        Raises:
            UserError: Different targets would become equal.
        """
        x = self.x.float() if self.x.dtype == torch.float64 else self.x
        y = self.y.float() if self.y is not None and self.y.dtype == torch.float64 else self.y
        if self.y is not None and y is not self.y and loses_digits(self.y, torch.float32):
            raise UserError(
                "source: this accelerator has no float64, and float32 cannot distinguish the targets; subtract a "
                "constant from them, or train with accelerator=cpu"
            )
        return self if x is self.x and y is self.y else replace(self, x=x, y=y)

    def examples(self, numbers: Tensor) -> Tensor:
        """Look examples up by number.

        Args:
            numbers: `(M,)` numbers in [0, n * rotations); example i rotated by 90 r degrees has number `r * n + i`.

        Returns:
            `(M, *input_shape)` examples.
        """
        turns, rows = numbers // len(self.x), numbers % len(self.x)
        base = torch.searchsorted(self.starts, rows, right=True) - 1
        classes = base + turns * len(self.names)
        return self.gather(classes, (rows - self.starts[base]).unsqueeze(-1)).squeeze(1)

    def gather(self, classes: Tensor, members: Tensor) -> Tensor:
        """Look examples up by class and number within the class.

        Args:
            classes: `(..., N)` classes in [0, num_classes).
            members: `(..., N, M)` numbers in [0, size of the class).

        Returns:
            `(..., N, M, *input_shape)` examples, rotated as their class.
        """
        rows = self._rows(classes, members)
        flat = rows.flatten().to(self.x.device, non_blocking=True)
        x = self.x.index_select(0, flat).view(*rows.shape, *self.input_shape)  # faster than x[rows]
        if self.rotations > 1:
            quarters = classes // len(self.names)
            for turn in range(1, 4):
                chosen = quarters == turn
                x[chosen] = torch.rot90(x[chosen], turn, dims=(-2, -1))
        return x

    def gather_targets(self, classes: Tensor, members: Tensor) -> Tensor:
        """Look up real-valued targets, `(..., N, M, outputs)`, with the arguments of `gather`."""
        assert self.y is not None
        rows = self._rows(classes, members)
        flat = rows.flatten().to(self.y.device, non_blocking=True)
        return self.y.index_select(0, flat).view(*rows.shape, self.y.shape[1])

    def _rows(self, classes: Tensor, members: Tensor) -> Tensor:
        """Return the `(..., N, M)` rows of examples in `x` and `y`."""
        return self.starts[classes % len(self.names)].unsqueeze(-1) + members
