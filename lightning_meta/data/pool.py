"""Stored examples of many classes, or of many regression tasks: one tensor, grouped by class or task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.functional.precision import loses_digits


@dataclass(frozen=True)
class Pool:
    """The examples of one split, grouped by class; classes may differ in size.

    With real targets `y` the groups are regression tasks in place of classes, one of which is drawn for an episode.

    Attributes:
        x: Every example, `(n, *input_shape)`, the classes one after the other; uint8 for images.
        sizes: `(C,)` int64, how many examples each class has, in the order they lie in `x`.
        names: The C class names, each once.
        groups: The group that each class belongs to: an alphabet, a script, a superclass.
        rotations: 1, or 4 where each class also stands as three more, turned by 90, 180 and 270 degrees
            (Santoro et al. 2016). Class `r * C + c` is class `c` turned by `r` quarters.
        y: Real targets of the examples, `(n, outputs)` in their own units; None where the class is what is predicted.
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
        """Group examples by their label; within a class they keep their order.

        Args:
            x: `(n, *input_shape)`.
            y: n labels in [0, C).
            names: The C class names.
            groups: The C groups; by default every class is in the group "".
            targets: `(n, outputs)` where the C classes are regression tasks.

        Raises:
            UserError: A label is out of range, or there are more or fewer labels than examples.
        """
        labels = torch.as_tensor(y, dtype=torch.int64)
        if len(labels) != len(x):
            raise UserError(f"{len(x)} examples have {len(labels)} labels; every example needs one")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise UserError(f"label {wrong} is out of range: there are {len(names)} classes, 0 to {len(names) - 1}")
        order = labels.argsort(stable=True)
        sizes = torch.bincount(labels, minlength=len(names))
        of_classes = tuple(groups if groups is not None else [""] * len(names))
        return cls(x[order], sizes, tuple(names), of_classes, y=None if targets is None else targets[order])

    @property
    def num_classes(self) -> int:
        """How many classes can be drawn, rotations included."""
        return len(self.names) * self.rotations

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.x.shape[1:])

    def rotated(self) -> Pool:
        """The same pool with each class's three quarter-turns as classes of their own.

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
        """Names of classes, turned ones as `name@90`."""
        count = len(self.names)
        return [self.names[c % count] + (f"@{90 * (c // count)}" if c >= count else "") for c in map(int, classes)]

    def select(self, classes: Sequence[int]) -> Pool:
        """The pool of a few classes, in the order given (a copy of their examples)."""
        chosen = torch.as_tensor(classes, dtype=torch.int64)
        sizes, starts = self.sizes[chosen], self.starts[chosen]
        ranges = [torch.arange(s, s + n) for s, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
        rows = torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)
        names, groups = [self.names[c] for c in classes], [self.groups[c] for c in classes]
        y = None if self.y is None else self.y[rows]
        return Pool(self.x[rows], sizes, tuple(names), tuple(groups), self.rotations, y)

    def to(self, device: torch.device | str) -> Pool:
        """The pool with its examples on a device; which of them are drawn is always said on the CPU."""
        return replace(self, x=self.x.to(device), y=None if self.y is None else self.y.to(device))

    def without_float64(self) -> Pool:
        """The pool with float32 in place of float64 examples and targets.

        Raises:
            UserError: Targets would become the same.
        """
        x = self.x.float() if self.x.dtype == torch.float64 else self.x
        y = self.y.float() if self.y is not None and self.y.dtype == torch.float64 else self.y
        if self.y is not None and y is not self.y and loses_digits(self.y, torch.float32):
            raise UserError(
                "source: this accelerator has no float64, and float32 cannot tell the targets apart; subtract a "
                "constant from them, or train with accelerator=cpu"
            )
        return self if x is self.x and y is self.y else replace(self, x=x, y=y)

    def examples(self, numbers: Tensor) -> Tensor:
        """Look examples up by number.

        Args:
            numbers: `(M,)` in [0, n * rotations): those of each further quarter-turn follow those of the one before.

        Returns:
            `(M, *input_shape)`.
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
            `(..., N, M, *input_shape)`, turned where the class is a rotation.
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
        """The real targets of examples, `(..., N, M, outputs)`; arguments as of `gather`."""
        assert self.y is not None
        rows = self._rows(classes, members)
        flat = rows.flatten().to(self.y.device, non_blocking=True)
        return self.y.index_select(0, flat).view(*rows.shape, self.y.shape[1])

    def _rows(self, classes: Tensor, members: Tensor) -> Tensor:
        """Where examples lie in `x` and `y`, `(..., N, M)`."""
        return self.starts[classes % len(self.names)].unsqueeze(-1) + members
